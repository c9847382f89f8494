"""Backend `torch`: plain PyTorch operations on any device, no synchronisation, no compiler.

Each key becomes the high half of an int64 whose low half is the inverted expert id, so that
every comparison is decided, the lower id winning ties, whatever order `torch.topk` leaves
equal values in. Formulae as in reference.py, in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sglang_moe_ext.ops.backend import Prepared
from sglang_moe_ext.ops.spec import RouterSpec

_NAN_RANK = -(2**31) - 1
_DROPPED = torch.iinfo(torch.int64).min


def supports(spec: RouterSpec) -> str | None:
    return None


def prepare(spec: RouterSpec) -> Prepared:
    return Prepared(lambda logits, bias: torch_topk(logits, bias, spec), "eager torch operations")


def torch_topk(logits: Tensor, bias: Tensor, spec: RouterSpec) -> tuple[Tensor, Tensor]:
    """Route `logits` [T, E] with `bias` [E] or [T, E]; see ops.backend.Prepared.run."""
    T, E, G = logits.shape[0], spec.num_experts, spec.num_expert_group
    x = _widen(logits)
    key = x.sigmoid().float() + bias.float()
    packed = _pack(key)
    if G > 1:
        kept = _kept_groups(key.view(T, G, spec.experts_per_group), spec)
        packed = (
            packed.view(T, G, spec.experts_per_group)
            .masked_fill(~kept.unsqueeze(2), _DROPPED)
            .view(T, E)
        )
    ids = packed.topk(spec.topk_routed, dim=1).indices  # sorted, and no two are equal

    weights = _unbiased_weights(x.gather(1, ids), key.gather(1, ids), spec)
    S = spec.num_fused_shared_experts
    if S:
        shared = torch.arange(E, E + S, device=ids.device).expand(T, S)
        ids = torch.cat([ids, shared], dim=1)
        weights = torch.cat([weights, weights.new_full((T, S), spec.shared_weight)], dim=1)
    return weights, ids.int()


def _widen(logits: Tensor) -> Tensor:
    """The logits in the dtype to compute in, upcast exactly."""
    # On the CPU the vectorised exp and its scalar tail differ in the last bit, and the batch
    # decides which elements are tail; rounding from float64 hides that. Other devices run the
    # same code for every element, and some have no float64.
    return logits.double() if logits.device.type == "cpu" else logits.float()


def _pack(key: Tensor) -> Tensor:
    """float32 keys [..., N] as unique int64: key order, NaN last, lower index first."""
    bits = key.view(torch.int32).long()
    ordered = torch.where(bits >= 0, bits, bits ^ 0x7FFFFFFF)
    ordered = torch.where(key.isnan(), _NAN_RANK, ordered)
    N = key.shape[-1]
    return ordered * 2**16 + torch.arange(N - 1, -1, -1, device=key.device)


def _kept_groups(key: Tensor, spec: RouterSpec) -> Tensor:
    """Mask [T, G] of the best groups, from keys [T, G, E/G]."""
    numbers = torch.where(key.isnan(), -torch.inf, key)
    best = numbers.topk(min(2, spec.experts_per_group), dim=2).values
    score = torch.where(best[..., 0] == torch.inf, torch.inf, best.sum(dim=2))
    kept = _pack(score).topk(spec.topk_group, dim=1).indices
    return torch.zeros_like(score, dtype=torch.bool).scatter_(1, kept, True)


def _unbiased_weights(x: Tensor, key: Tensor, spec: RouterSpec) -> Tensor:
    """Weights [T, K-S] float32 of the selected experts, from their logits."""
    limits = torch.finfo(x.dtype)
    x = torch.where(key > -torch.inf, x, -torch.inf)  # banned and NaN experts weigh nothing
    below_zero = x.clamp(max=0)
    if not spec.renormalize:
        shift = torch.zeros_like(x[:, :1])
    else:
        # All scores times exp(-shift): ratios survive where the scores themselves underflow.
        shift = below_zero.amax(dim=1, keepdim=True).clamp(min=limits.min)
    score = (below_zero - shift).exp() / (1 + (-x.abs()).exp())
    if spec.renormalize:
        score = score / score.sum(dim=1, keepdim=True).clamp(min=limits.tiny)
    return (score * spec.output_scale).float()
