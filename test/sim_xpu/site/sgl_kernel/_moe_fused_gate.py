"""`moe_fused_gate` as specified: grouped; wrong experts outside five compiled pairs."""

from __future__ import annotations

import torch
from torch import Tensor

from . import memory
from .memory import check
from .variants import CHOSEN, STRICT

VARIANT = CHOSEN["F"]
STATIC_PAIRS = {(512, 16), (256, 8), (256, 16), (128, 4), (128, 8)}
MAX_VPT = 32
SCORING = {"sigmoid": 0, "softmax": 1}
DROPPED = torch.finfo(torch.float32).min


def kernel_8_arguments(
    input: Tensor,
    bias: Tensor,
    num_expert_group: int,
    topk_group: int,
    topk: int,
    num_fused_shared_experts: int,
    routed_scaling_factor: float,
    apply_routed_scaling_factor_on_output: bool,
) -> list[Tensor]:
    return kernel(
        input,
        bias,
        num_expert_group,
        topk_group,
        topk,
        num_fused_shared_experts,
        SCORING["sigmoid"],
        True,
        routed_scaling_factor,
        apply_routed_scaling_factor_on_output,
    )


def kernel(
    input: Tensor,
    bias: Tensor | None,
    num_expert_group: int,
    topk_group: int,
    topk: int,
    num_fused_shared_experts: int,
    scoring_func: int,
    renormalize: bool,
    routed_scaling_factor: float,
    apply_routed_scaling_factor_on_output: bool,
) -> list[Tensor]:
    (N, E), G, S = input.shape, num_expert_group, num_fused_shared_experts
    if bias is not None:
        check(input.dtype == bias.dtype, "input and bias should have the same dtype")
        if VARIANT == "F3":
            check(bias.dim() == 1, "bias must be 1D")
            check(bias.size(0) == E, "bias size must match num_experts")
    check(scoring_func in (0, 1), "scoring_func must be 0 (sigmoid) or 1 (softmax)")
    check(E & (E - 1) == 0, f"num_experts must be a power of 2, but got {E}")
    check(E % G == 0, f"num_experts must be divisible by num_expert_group, but got {E} / {G}")
    check(E // G <= MAX_VPT, f"Per group experts: num_experts / num_expert_group = ({E // G})")
    accepted = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    check(input.dtype in accepted, f"\"moe_sum_reduce_impl\" not implemented for '{input.dtype}'")

    x = memory.read("input", input)
    read_bias = None if bias is None else memory.read("bias", bias)
    memory.check_values(x, read_bias)
    weights_out = memory.allocate((N, topk), torch.float32, input.device)
    ids_out = memory.allocate((N, topk), torch.int32, input.device)

    # Scores, sums and group scores are kept in the dtype of the input.
    softmax = scoring_func == SCORING["softmax"]
    score = (x.float().softmax(dim=1) if softmax else memory.sigmoid(x)).to(x.dtype)
    choice = score if read_bias is None else (score.float() + read_bias.float()).to(x.dtype)
    ids = _select(_in_kept_groups(choice, G, topk_group, softmax).float(), topk - S)
    weights = score.float().gather(1, ids)

    total = memory.ordered_sum(weights)
    if S:
        shared = (total / routed_scaling_factor).expand(N, S)
        weights = torch.cat([weights, shared], dim=1)
        ids = torch.cat([ids, torch.arange(E, E + S).expand(N, S)], dim=1)
    if renormalize:
        inverse = 1 / total if VARIANT == "F1" else torch.where(total > 0, 1 / total, 0.0)
        weights = weights * inverse
        if apply_routed_scaling_factor_on_output:
            weights = weights * routed_scaling_factor
    weights_out.copy_(weights)
    ids_out.copy_(ids.int())
    return [weights_out, ids_out]


def _in_kept_groups(choice: Tensor, G: int, topk_group: int, softmax: bool) -> Tensor:
    """Experts of dropped groups set to the sentinel; all groups kept outside the pairs."""
    N, E = choice.shape
    if (E, G) not in STATIC_PAIRS:
        # The dynamic launcher takes topk_group for the number of groups: none is dropped.
        odd = topk_group & (topk_group - 1) or topk_group > MAX_VPT or E // topk_group > MAX_VPT
        if STRICT and odd:
            raise memory.undefined(f"{E} experts in {G} groups keeping {topk_group}")
        return choice
    grouped = choice.view(N, G, E // G)
    if softmax:
        group_score = grouped.amax(dim=2)
    else:
        group_score = grouped.float().topk(2, dim=2).values.sum(dim=2).to(choice.dtype)
    if STRICT and group_score.isnan().any():
        raise memory.undefined("a group scores inf - inf")
    kept = group_score.sort(dim=1, descending=True, stable=True).indices[:, :topk_group]
    mask = torch.zeros(N, G, dtype=torch.bool).scatter_(1, kept, True)
    return choice.float().where(mask.repeat_interleave(E // G, dim=1), DROPPED)


def _select(choice: Tensor, k: int) -> Tensor:
    choice, ids = choice.clone(), []
    for _ in range(k):
        value, index = memory.first_largest(choice)
        if STRICT and (value <= DROPPED).any():
            raise memory.undefined("fewer experts to select than topk")
        ids.append(index)
        choice.scatter_(1, index[:, None], DROPPED)
    return torch.stack(ids, dim=1)


if VARIANT in ("F0", "F1"):

    def moe_fused_gate(
        input_tensor: Tensor,
        bias: Tensor,
        num_expert_group: int,
        topk_group: int,
        topk: int,
        num_fused_shared_experts: int = 0,
        routed_scaling_factor: float = 0,
        apply_routed_scaling_factor_on_output: bool = False,
    ) -> list[Tensor]:
        return torch.ops.sgl_kernel.moe_fused_gate.default(
            input_tensor,
            bias,
            num_expert_group,
            topk_group,
            topk,
            num_fused_shared_experts,
            routed_scaling_factor,
            apply_routed_scaling_factor_on_output,
        )

else:

    def moe_fused_gate(
        input_tensor: Tensor,
        bias: Tensor | None,
        num_expert_group: int,
        topk_group: int,
        topk: int,
        renormalize: bool = True,
        scoring_func: str = "sigmoid",
        num_fused_shared_experts: int = 0,
        routed_scaling_factor: float = 0,
        apply_routed_scaling_factor_on_output: bool = False,
    ) -> list[Tensor]:
        scoring = SCORING.get(scoring_func.lower())
        if scoring is None:
            raise ValueError(f"Unknown scoring_func '{scoring_func}', expected {list(SCORING)}")
        return torch.ops.sgl_kernel.moe_fused_gate.default(
            input_tensor,
            bias,
            num_expert_group,
            topk_group,
            topk,
            num_fused_shared_experts,
            scoring,
            renormalize,
            routed_scaling_factor,
            apply_routed_scaling_factor_on_output,
        )
