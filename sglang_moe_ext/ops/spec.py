"""What one router call computes: every argument that stays the same from call to call."""

from __future__ import annotations

from dataclasses import dataclass

import torch

LOGITS_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class RouterSpec:
    """A validated router configuration; letters as in the DeepSeek-V3 report.

    A backend sees this, never raw arguments, so it needs no checks of its own.

    num_experts: E, routed experts, a multiple of num_expert_group.
    topk: K, columns of the output, fused shared slots included.
    num_expert_group: G; 1 means ungrouped.
    topk_group: groups kept, 1..G.
    num_fused_shared_experts: S, the last columns of the output, 0 <= S < K.
    renormalize: divide the routed weights by their sum.
    routed_scaling_factor: the factor; finite.
    apply_routed_scaling_factor_on_output: multiply the routed weights by it here.
    logits_dtype, bias_dtype: one of LOGITS_DTYPES.
    per_token_bias: the bias is [T, E] instead of [E].
    device_type: torch device type of logits and bias.

    Raises ValueError naming the argument, what was found and what is allowed.
    """

    num_experts: int
    topk: int
    num_expert_group: int = 1
    topk_group: int = 1
    num_fused_shared_experts: int = 0
    renormalize: bool = True
    routed_scaling_factor: float = 1.0
    apply_routed_scaling_factor_on_output: bool = False
    logits_dtype: torch.dtype = torch.float32
    bias_dtype: torch.dtype = torch.float32
    per_token_bias: bool = False
    device_type: str = "cpu"

    def __post_init__(self) -> None:
        E, G, TG, S = (
            self.num_experts,
            self.num_expert_group,
            self.topk_group,
            self.num_fused_shared_experts,
        )
        if E < 1:
            raise ValueError(f"gating_output has {E} experts (columns), expected at least 1")
        if G < 1 or E % G:
            raise ValueError(f"num_expert_group is {G}, expected a divisor of the {E} experts")
        if not 1 <= TG <= G:
            raise ValueError(f"topk_group is {TG}, expected 1..{G} (num_expert_group)")
        if not 0 <= S < max(self.topk, 1):
            raise ValueError(
                f"num_fused_shared_experts is {S}, expected 0..{max(self.topk - 1, 0)} "
                f"(below topk, which counts the shared slots)"
            )
        eligible = TG * self.experts_per_group
        if not 1 <= self.topk_routed <= eligible:
            raise ValueError(
                f"topk is {self.topk} with {S} fused shared experts, so {self.topk_routed} routed "
                f"experts per token, expected 1..{eligible} (topk_group {TG} x {E}/{G} experts)"
            )
        scale = self.routed_scaling_factor
        if scale - scale != 0:  # NaN or infinite
            raise ValueError(f"routed_scaling_factor is {scale}, expected a finite number")
        if S and scale == 0 and not self.apply_routed_scaling_factor_on_output:
            raise ValueError(
                "routed_scaling_factor is 0 and is applied later, expected non-zero: "
                "a fused shared slot weighs 1/routed_scaling_factor"
            )
        for name, dtype in (
            ("gating_output", self.logits_dtype),
            ("correction_bias", self.bias_dtype),
        ):
            if dtype not in LOGITS_DTYPES:
                allowed = ", ".join(str(d).removeprefix("torch.") for d in LOGITS_DTYPES)
                raise ValueError(f"{name} is {dtype}, expected one of {allowed}")

    @property
    def topk_routed(self) -> int:
        """Columns that hold routed experts."""
        return self.topk - self.num_fused_shared_experts

    @property
    def experts_per_group(self) -> int:
        return self.num_experts // self.num_expert_group

    @property
    def output_scale(self) -> float:
        """What routed weights are multiplied by here."""
        return self.routed_scaling_factor if self.apply_routed_scaling_factor_on_output else 1.0

    @property
    def shared_weight(self) -> float:
        """Weight of a fused shared slot, so that it is 1 once the factor has been applied."""
        return (
            1.0 if self.apply_routed_scaling_factor_on_output else 1.0 / self.routed_scaling_factor
        )

    def __str__(self) -> str:
        groups = (
            f" g{self.num_expert_group} tg{self.topk_group}" if self.num_expert_group > 1 else ""
        )
        shared = f"+{self.num_fused_shared_experts}" if self.num_fused_shared_experts else ""
        return f"{self.num_experts}/{self.topk_routed}{shared}{groups}"
