"""Is a backend's answer right? Compared with the reference, near-ties allowed, nothing else.

float32 rounding may decide between two keys a few units in the last place apart, so an
answer that differs from the reference only there is accepted. Everything else is not:
wrong or repeated experts, a wrong order, a higher id before a lower one of the same logit and
bias, weights off by more than WEIGHT_RTOL, anything left unwritten.
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

    x, b = logits.double(), bias.double()
    low, high = _bounds(_keys(logits, bias), x.sigmoid(), b)
    pairs = torch.stack([x, b], dim=1)
    twins = pairs.unique(dim=0, return_inverse=True)[1]  # type: ignore[no-untyped-call]
    eligible = torch.ones(E, dtype=torch.bool)
    if spec.num_expert_group > 1:
        groups = twins.view(spec.num_expert_group, -1).sort(dim=1).values
        group_twins = groups.unique(dim=0, return_inverse=True)[1]
        ahead = _surely_ahead(*_group_bounds(low, high, spec), group_twins)
        if (ahead.sum(dim=0)[routed // spec.experts_per_group] >= spec.topk_group).any():
            return "not the best groups"
        used = torch.zeros(spec.num_expert_group, dtype=torch.bool)
        used[routed // spec.experts_per_group] = True
        if used.sum() > spec.topk_group:
            return "too many groups"
        # A group near the cut may have been dropped, so its experts may be missing.
        kept = spec.num_expert_group - ahead.sum(dim=1) <= spec.topk_group
        eligible = (used | kept).repeat_interleave(spec.experts_per_group)

    ahead = _surely_ahead(low, high, twins)
    if ahead[routed][:, routed].tril().any():
        return "not in descending order of key, the lower id first"
    eligible[routed] = False
    better = ahead[:, routed].any(dim=1) & eligible
    if better.any():
        return f"expert {int(better.nonzero()[0])} comes before one that was chosen"
    return None


def _bounds(key: Tensor, score: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """What float32 evaluations of the keys [E] may give, least and most, as float64."""
    # Relative to the operands: where they cancel, their errors stay.
    largest = torch.maximum(score, bias.abs())
    limits = torch.finfo(torch.float32)
    slack = NEAR_TIE_ULPS / 2 * limits.eps * largest + limits.tiny  # denormals may be flushed
    slack = torch.where(key.isfinite(), slack, 0.0)
    return key.double() - slack, key.double() + slack


def _group_bounds(low: Tensor, high: Tensor, spec: RouterSpec) -> tuple[Tensor, Tensor]:
    """The same for the scores of the groups, from the bounds [E] of the keys."""
    bounds = []
    for key, sign in ((low, -1), (high, 1)):
        numbers = torch.where(key.isnan(), -torch.inf, key).view(spec.num_expert_group, -1)
        best = numbers.topk(min(2, spec.experts_per_group)).values
        score = best.sum(dim=1).float().double()  # overflows as float32 does
        score = torch.where(best[:, 0] == torch.inf, torch.inf, score)
        rounding = torch.finfo(torch.float32).eps * best.abs().sum(dim=1)
        bounds.append(score + sign * torch.where(score.isfinite(), rounding, 0.0))
    return bounds[0], bounds[1]


def _surely_ahead(low: Tensor, high: Tensor, twins: Tensor) -> Tensor:
    """Mask [N, N]: must the first come before the second, whatever rounding does?

    low, high: bounds of the keys. twins: equal where the inputs are, so that no rounding can
    tell them apart; among them, among infinities and among NaN, the lower index comes first.
    """
    infinite = torch.where(low.isinf(), low.sign().nan_to_num(), 0.0)
    kind = torch.where(low.isnan(), -2.0, infinite)  # NaN below -inf
    tied = (twins[:, None] == twins) | ((kind[:, None] == kind) & (kind != 0))
    index = torch.arange(low.numel())
    return (
        (kind[:, None] > kind)
        | ((low[:, None] > high) & (kind[:, None] == kind))
        | (tied & (index[:, None] < index))
    )
