"""Is a backend's answer right? Compared with the reference, near-ties allowed, nothing else.

float32 rounding may decide between two keys a few units in the last place apart, so an
answer that differs from the reference only there is accepted. Everything else is not:
wrong or repeated experts, a wrong order, weights off by more than WEIGHT_RTOL, anything
left unwritten.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sglang_moe_ext.ops import reference
from sglang_moe_ext.ops.spec import RouterSpec

WEIGHT_RTOL = 1e-5
WEIGHT_ATOL = 1e-37  # float32 denormals carry no relative precision
NEAR_TIE_ULPS = 4


def find_mismatch(
    weights: Tensor, ids: Tensor, logits: Tensor, bias: Tensor, spec: RouterSpec
) -> str | None:
    """None if the answer is right, else one line: row, found, expected.

    weights, ids: [T, K], a backend's answer. logits: [T, E], bias: [E] or [T, E], its inputs.
    """
    shape = (logits.shape[0], spec.topk)
    for name, tensor, dtype in (("weights", weights, torch.float32), ("ids", ids, torch.int32)):
        if tuple(tensor.shape) != shape or tensor.dtype != dtype:
            return f"{name}: found {tensor.dtype} {tuple(tensor.shape)}, expected {dtype} {shape}"
    want_weights, want_ids = reference.reference_topk(logits.cpu(), bias.cpu(), spec)
    weights, ids = weights.cpu(), ids.cpu()

    differing = (ids != want_ids).any(dim=1).nonzero().flatten().tolist()
    for row in differing:
        why = _not_a_near_tie(ids[row], logits[row].cpu(), _row_of(bias, row), spec)
        if why:
            return f"row {row}: ids {ids[row].tolist()}, expected {want_ids[row].tolist()} ({why})"
        want_weights[row] = _weights_of(ids[row], logits[row].cpu(), _row_of(bias, row), spec)

    close = torch.isclose(weights, want_weights, rtol=WEIGHT_RTOL, atol=WEIGHT_ATOL)
    if not close.all():
        row = int((~close).any(dim=1).nonzero()[0])
        return (
            f"row {row}: ids {ids[row].tolist()}, weights {weights[row].tolist()}, "
            f"expected {want_weights[row].tolist()}"
        )
    return None


def _row_of(bias: Tensor, row: int) -> Tensor:
    return (bias[row] if bias.dim() == 2 else bias).cpu()


def _keys(logits: Tensor, bias: Tensor) -> Tensor:
    return logits.double().sigmoid().float() + bias.float()  # [E]


def _weights_of(ids: Tensor, logits: Tensor, bias: Tensor, spec: RouterSpec) -> Tensor:
    """The reference's weights [K] for given routed ids (shared slots as they are)."""
    routed = ids[: spec.topk_routed].long()
    score = reference.unbiased_weights(
        logits.double()[routed][None], _keys(logits, bias)[routed][None], spec
    )[0]
    shared = score.new_full((spec.num_fused_shared_experts,), spec.shared_weight)
    return torch.cat([score, shared]).float()


def _not_a_near_tie(ids: Tensor, logits: Tensor, bias: Tensor, spec: RouterSpec) -> str | None:
    """None if rounding alone explains the ids [K] of one row, else what is wrong with them."""
    E, S = spec.num_experts, spec.num_fused_shared_experts
    routed = ids[: spec.topk_routed].long()
    if ids[spec.topk_routed :].tolist() != list(range(E, E + S)):
        return "shared slots"
    if routed.min() < 0 or routed.max() >= E:
        return "out of range"
    if len(set(routed.tolist())) != routed.numel():
        return "repeated"

    key = _keys(logits, bias)
    if key.isnan().any() or key.isinf().any():
        return "not the documented rank of NaN and infinities"
    slack = NEAR_TIE_ULPS * torch.finfo(torch.float32).eps * float(key.abs().max())

    eligible = torch.ones(E, dtype=torch.bool)
    if spec.num_expert_group > 1:
        grouped = key.view(spec.num_expert_group, -1)
        score = grouped.topk(min(2, spec.experts_per_group), dim=1).values.sum(dim=1)
        cut = score.topk(spec.topk_group).values[-1]
        used = list(set((routed // spec.experts_per_group).tolist()))
        if len(used) > spec.topk_group or (score[used] < cut - 2 * slack).any():
            return "not the best groups"
        # A group near the cut may have been dropped, so its experts may be missing.
        sure = score > cut + 2 * slack
        if (score >= cut - 2 * slack).sum() == spec.topk_group:
            sure = score >= cut - 2 * slack
        sure[used] = True
        eligible = sure.repeat_interleave(spec.experts_per_group)

    chosen = key[routed]
    if (chosen[1:] > chosen[:-1] + slack).any():
        return "not in descending order of key"
    eligible[routed] = False
    if eligible.any() and key[eligible].max() > chosen.min() + slack:
        return f"expert {int(key.where(eligible, -torch.inf).argmax())} has a larger key"
    return None
