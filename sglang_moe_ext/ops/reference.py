"""The definition of right: biased grouped top-k in float64, stable sorts, on the CPU.

Formulae: DeepSeek-V3 technical report (arXiv 2412.19437), equations 12 to 16, with the
group limit of its section 2.1.2; what the report leaves open (ties, NaN, infinities,
underflow) is settled here, and every backend is judged by this file.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from sglang_moe_ext.ops.backend import Prepared
from sglang_moe_ext.ops.spec import RouterSpec

_NAN_RANK = -(2**31) - 1  # below -inf
_DROPPED_RANK = -(2**31) - 2  # experts of dropped groups: below even NaN


def supports(spec: RouterSpec) -> str | None:
    return None


def prepare(spec: RouterSpec) -> Prepared:
    return Prepared(
        lambda logits, bias: reference_topk(logits, bias, spec), "float64 and stable sorts, on CPU"
    )


def reference_topk(logits: Tensor, bias: Tensor, spec: RouterSpec) -> tuple[Tensor, Tensor]:
    """Route each row of `logits`.

    logits: [T, E], any strides. bias: [E] or [T, E].
    Returns weights [T, K] float32 and ids [T, K] int32 on the device of `logits`, ordered
    by key descending, the lower id first on ties, fused shared slots last.
    """
    x = logits.to("cpu", torch.float64)  # [T, E], exact
    # Keys are float32 by contract: both official gates add score and bias in float32.
    key = x.sigmoid().float() + bias.to("cpu", torch.float32)
    rank = _rank(key)
    if spec.num_expert_group > 1:
        rank = torch.where(_in_kept_groups(key, spec), rank, _DROPPED_RANK)
    # A stable sort puts the lower id first on ties.
    ids = rank.sort(dim=1, descending=True, stable=True).indices[:, : spec.topk_routed]

    weights = unbiased_weights(x.gather(1, ids), key.gather(1, ids), spec)
    if spec.num_fused_shared_experts:
        T, S = x.shape[0], spec.num_fused_shared_experts
        shared_ids = torch.arange(spec.num_experts, spec.num_experts + S).expand(T, S)
        ids = torch.cat([ids, shared_ids], dim=1)
        weights = torch.cat([weights, weights.new_full((T, S), spec.shared_weight)], dim=1)
    return weights.float().to(logits.device), ids.int().to(logits.device)


def _rank(key: Tensor) -> Tensor:
    """float32 keys as int64 of the same order, NaN below -inf."""
    bits = key.view(torch.int32).long()
    ordered = torch.where(bits >= 0, bits, bits ^ 0x7FFFFFFF)
    return torch.where(key.isnan(), _NAN_RANK, ordered)


def _in_kept_groups(key: Tensor, spec: RouterSpec) -> Tensor:
    """Mask [T, E] of the experts in the `topk_group` best groups."""
    T, G = key.shape[0], spec.num_expert_group
    grouped = key.masked_fill(key.isnan(), -torch.inf).view(T, G, spec.experts_per_group)
    best = grouped.topk(min(2, spec.experts_per_group), dim=2).values  # multiplicity counts
    # A forced expert (+inf) carries its group even beside banned ones: inf-inf is NaN.
    score = torch.where(best[..., 0] == torch.inf, torch.inf, best.sum(dim=2))
    kept = score.sort(dim=1, descending=True, stable=True).indices[:, : spec.topk_group]
    mask = torch.zeros(T, G, dtype=torch.bool).scatter_(1, kept, True)
    return mask.repeat_interleave(spec.experts_per_group, dim=1)


def unbiased_weights(x: Tensor, key: Tensor, spec: RouterSpec) -> Tensor:
    """Weights [T, K-S] float64 of the selected experts, from their logits, never from keys."""
    # Banned (-inf) and NaN experts that had to be selected weigh nothing.
    log_score = torch.where(key > -torch.inf, logsigmoid(x), -torch.inf)
    if spec.renormalize:
        # In log form the ratios survive where the scores themselves underflow.
        top = log_score.amax(dim=1, keepdim=True).clamp(min=torch.finfo(x.dtype).min)
        score = (log_score - top).exp()
        score = score / score.sum(dim=1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
    else:
        score = log_score.exp()
    return score * spec.output_scale
