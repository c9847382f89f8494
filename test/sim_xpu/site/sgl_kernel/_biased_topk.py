"""`biased_topk` as specified: ungrouped, up to 512 experts, raw scores as weights."""

from __future__ import annotations

import torch
from torch import Tensor

from . import memory
from .memory import check

SCORING = {"sigmoid": 0, "sqrtsoftplus": 1}
LOWEST = torch.finfo(torch.float32).min


def kernel(
    input: Tensor,
    bias: Tensor,
    output: Tensor,
    indices: Tensor,
    topk: int,
    scoring_func: int,
    num_fused_shared_experts: int,
    renormalize: bool,
    routed_scaling_factor: float,
    apply_routed_scaling_factor_on_output: bool,
) -> None:
    S = num_fused_shared_experts
    check(input.dim() == 2, "input must be 2D")
    check(bias.dim() == 1, "bias must be 1D")
    N, E = input.shape
    check(bias.size(0) == E, "input.size(1) must match bias.size(0)")
    accepted = (torch.float32, torch.float16, torch.bfloat16)
    check(input.dtype in accepted, "input must be float32, float16 or bfloat16")
    check(bias.dtype == torch.float32, "bias must be float32")
    check(E <= 512, "num_experts exceeds maximum supported value: 512")
    check(topk > S, "topk must be greater than num_fused_shared_experts")
    check(topk <= 16, "topk exceeds maximum supported value: 16")
    check(scoring_func in (0, 1), "scoring_func must be 0 (sigmoid) or 1 (sqrtsoftplus)")
    check(output.dtype == torch.float32, "output must be float32")
    check(indices.dtype == torch.int32, "indices must be int32")
    check(output.dim() == 2, "output must be 2D")
    check(indices.dim() == 2, "indices must be 2D")
    check(tuple(output.shape) == (N, topk), "output shape mismatch")
    check(tuple(indices.shape) == (N, topk), "indices shape mismatch")

    x = memory.read("input", input)
    b = memory.read("bias", bias)
    memory.check_values(x, b, nan_is_documented=True)
    weights_out = memory.output("output", output, (N, topk))
    ids_out = memory.output("indices", indices, (N, topk))

    if scoring_func == SCORING["sigmoid"]:
        score = memory.sigmoid(x)
    else:
        score = x.float().exp().log1p().sqrt()  # overflows above 88, as on the device
    ids, weights = _select(score, b, topk - S)
    total = memory.ordered_sum(weights)
    if S:
        weights = torch.cat([weights, (total / routed_scaling_factor).expand(N, S)], dim=1)
        ids = torch.cat([ids, torch.arange(E, E + S).expand(N, S)], dim=1)
    if renormalize:
        weights = weights / total.where(total > 0, 1.0)
    if apply_routed_scaling_factor_on_output:
        weights = weights * routed_scaling_factor
    weights_out.copy_(weights)
    ids_out.copy_(ids.int())


def _select(score: Tensor, bias: Tensor, k: int) -> tuple[Tensor, Tensor]:
    choice = score + bias
    choice = choice.where(choice > LOWEST, LOWEST)  # NaN and -inf never win
    ids, weights = [], []
    for _ in range(k):
        value, index = memory.first_largest(choice)
        exhausted = value <= LOWEST
        index = index.where(~exhausted, 0)
        ids.append(index)
        weights.append(score.gather(1, index[:, None])[:, 0].where(~exhausted, 0.0))
        choice.scatter_(1, index[:, None], LOWEST)
    return torch.stack(ids, dim=1), torch.stack(weights, dim=1)


def biased_topk(
    input: Tensor,
    bias: Tensor,
    output: Tensor,
    indices: Tensor,
    topk: int,
    scoring_func: str,
    num_fused_shared_experts: int = 0,
    renormalize: bool = False,
    routed_scaling_factor: float = 1.0,
    apply_routed_scaling_factor_on_output: bool = False,
) -> None:
    if scoring_func not in SCORING:
        raise ValueError(f"Unknown scoring_func '{scoring_func}', expected {list(SCORING)}")
    torch.ops.sgl_kernel.biased_topk.default(
        input,
        bias,
        output,
        indices,
        topk,
        SCORING[scoring_func],
        num_fused_shared_experts,
        renormalize,
        routed_scaling_factor,
        apply_routed_scaling_factor_on_output,
    )
