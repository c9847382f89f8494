"""`topk_sigmoid` as specified: ungrouped, weights recovered as (score + bias) - bias."""

from __future__ import annotations

import torch
from torch import Tensor

from . import memory
from .memory import check
from .variants import CHOSEN, STRICT

VARIANT = CHOSEN["S"]
TAKEN = -10000.0


def kernel(
    topk_weights: Tensor,
    topk_indices: Tensor,
    gating_output: Tensor,
    renormalize: bool,
    correction_bias: Tensor | None,
    routed_scaling_factor: float = 1.0,
    num_fused_shared_experts: int = 0,
) -> None:
    check(gating_output.dim() == 2, "gating_output must be 2D")
    N, E = gating_output.shape
    check(E <= 256, f"n_experts only support up to 256, got {E}")
    check(topk_weights.dtype == torch.float32, "topk_weights should be Float")
    check(topk_indices.dtype == torch.int32, "topk_indices should be Int")
    k, S = topk_weights.size(1), num_fused_shared_experts
    check(0 < k <= min(E, 8), "topk must be less than or equal to num_experts and 8")
    check(0 <= S <= 1, "num_fused_shared_experts must be 0 or 1")
    check(k > S, "topk must be greater than num_fused_shared_experts")
    check(
        not (S and not renormalize and routed_scaling_factor == 0),
        "routed_scaling_factor must not be 0",
    )
    if correction_bias is not None:
        shaped = correction_bias.dim() == 1 and correction_bias.size(0) == E
        check(shaped, "correction_bias must be 1D [num_experts]")
        check(correction_bias.dtype == torch.float32, "correction_bias must be float32")
    reduced = (torch.float16, torch.bfloat16)
    accepted = reduced if VARIANT == "S1a" else (torch.float32, *reduced)
    name = {torch.float32: "Float", torch.float64: "Double"}.get(
        gating_output.dtype, str(gating_output.dtype)
    )
    check(
        gating_output.dtype in accepted,
        f"\"fused_topk_sigmoid_kernel\" not implemented for '{name}'",
        NotImplementedError,
    )

    x = memory.read("gating_output", gating_output)
    bias = None if correction_bias is None else memory.read("correction_bias", correction_bias)
    memory.check_values(x, bias)
    weights_out = memory.output("topk_weights", topk_weights, (N, k))
    ids_out = memory.output("topk_indices", topk_indices, (N, k))

    ids, weights = _select(memory.sigmoid(x), bias, k - S)
    total = memory.ordered_sum(weights)
    if S:
        shared = torch.ones(N, 1) if renormalize else total / routed_scaling_factor
    if renormalize:
        weights = weights * _scale(total, E, routed_scaling_factor)
    if S:
        weights = torch.cat([weights, shared], dim=1)
        ids = torch.cat([ids, torch.full((N, 1), E)], dim=1)
    weights_out.copy_(weights)
    ids_out.copy_(ids.int())


def _select(score: Tensor, bias: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
    choice = score.clone() if bias is None else score + bias
    powers_of_two = choice.shape[1] & (choice.shape[1] - 1) == 0
    ids, weights = [], []
    for _ in range(k):
        value, index = memory.first_largest(choice)
        exhausted = value <= TAKEN if powers_of_two else value == -torch.inf
        if STRICT and exhausted.any():
            raise memory.undefined("fewer experts to select than topk")
        if not powers_of_two:
            index = index.where(~exhausted, 0)
        ids.append(index)
        weights.append(value if bias is None else value - bias[index])
        choice.scatter_(1, index[:, None], TAKEN if powers_of_two else -torch.inf)
    return torch.stack(ids, dim=1), torch.stack(weights, dim=1)


def _scale(total: Tensor, experts: int, factor: float) -> Tensor:
    if VARIANT == "S2":
        return factor / (total + 1e-20)
    guarded = VARIANT == "S1a" or experts & (experts - 1)
    return torch.where(total > 0, 1 / total, 1.0) if guarded else 1 / total


def _call(*args: object) -> None:
    torch.ops.sgl_kernel.topk_sigmoid.default(*args)


if VARIANT == "S2":

    def topk_sigmoid(
        topk_weights: Tensor,
        topk_ids: Tensor,
        gating_output: Tensor,
        renormalize: bool = False,
        correction_bias: Tensor | None = None,
        routed_scaling_factor: float = 1.0,
        num_fused_shared_experts: int = 0,
    ) -> None:
        _call(
            topk_weights,
            topk_ids,
            gating_output,
            renormalize,
            correction_bias,
            routed_scaling_factor,
            num_fused_shared_experts,
        )

else:

    def topk_sigmoid(
        topk_weights: Tensor,
        topk_ids: Tensor,
        gating_output: Tensor,
        renormalize: bool = False,
        correction_bias: Tensor | None = None,
    ) -> None:
        _call(topk_weights, topk_ids, gating_output, renormalize, correction_bias)
