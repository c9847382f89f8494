"""The public operation: validate, look the backend up, call it.

The choice is made once per argument set and device and cached under a key that holds no
token count, so a call costs one dictionary look-up. A backend that raises is passed over
for the next one, with the reason kept; a forced backend raises instead.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sglang_moe_ext import env, ledger
from sglang_moe_ext.ops.choose import Plan, choose, choose_next, force
from sglang_moe_ext.ops.spec import RouterSpec

_plans: dict[tuple[Any, ...], Plan] = {}


def biased_grouped_topk(
    gating_output: Tensor,
    correction_bias: Tensor,
    topk: int,
    renormalize: bool,
    num_expert_group: int | None = None,
    topk_group: int | None = None,
    num_fused_shared_experts: int = 0,
    routed_scaling_factor: float | None = None,
    apply_routed_scaling_factor_on_output: bool | None = False,
    *,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Choose experts by sigmoid score plus bias, weigh them by the unbiased score.

    gating_output: logits [T, E] float32, bfloat16 or float16; any strides.
    correction_bias: [E], or [T, E] for a bias per token; same dtypes, same device.
    topk: K columns of the result, fused shared slots included.
    num_expert_group, topk_group: G groups of E/G experts and how many are kept; None or 0
        for both means one group.
    routed_scaling_factor: None means 1.
    backend: forces one (see ops/choose.py for the automatic order).

    Returns weights [T, K] float32 and ids [T, K] int32, by score plus bias descending, the
    lower id first on ties, shared slots E, E+1, ... last. Rules: DeepSeek-V3 technical
    report (arXiv 2412.19437) section 2.1.2, and ops/reference.py for what it leaves open.

    Raises ValueError naming the argument, what was found and what is allowed, before any
    launch; BackendError if a forced backend, or every backend, cannot serve the call.
    """
    if torch.compiler.is_compiling():
        result: tuple[Tensor, Tensor] = torch.ops.sglang_moe_ext.biased_grouped_topk(
            gating_output,
            correction_bias,
            topk,
            renormalize,
            num_expert_group,
            topk_group,
            num_fused_shared_experts,
            routed_scaling_factor,
            bool(apply_routed_scaling_factor_on_output),
            backend,
        )
        return result
    if gating_output.dim() != 2:
        raise ValueError(
            f"gating_output has shape {tuple(gating_output.shape)}, expected [tokens, experts]"
        )
    tokens, experts = gating_output.shape
    bias_shape = correction_bias.shape
    key = (
        gating_output.device,
        gating_output.dtype,
        experts,
        correction_bias.device,
        correction_bias.dtype,
        len(bias_shape),
        bias_shape[-1] if bias_shape else 0,
        topk,
        renormalize,
        num_expert_group,
        topk_group,
        num_fused_shared_experts,
        routed_scaling_factor,
        apply_routed_scaling_factor_on_output,
        backend,
    )
    plan = _plans.get(key)
    if plan is None:
        plan = _plans[key] = _make_plan(key)
    if plan.spec.per_token_bias and bias_shape[0] != tokens:
        raise ValueError(
            f"correction_bias has shape {tuple(correction_bias.shape)}, "
            f"expected [{tokens}, {experts}], a row per token"
        )
    if tokens == 0:
        return (
            gating_output.new_empty((0, topk), dtype=torch.float32),
            gating_output.new_empty((0, topk), dtype=torch.int32),
        )
    if not gating_output.is_contiguous() and gating_output.stride(1) != 1:
        gating_output = gating_output.contiguous()
    if not correction_bias.is_contiguous():
        correction_bias = correction_bias.contiguous()
    while True:
        try:
            result = plan.run(gating_output, correction_bias)
            break
        except Exception as error:  # whatever a kernel throws, the request must not be lost
            if plan.is_last:
                raise
            plan = _plans[key] = choose_next(plan, error, gating_output.device)
    plan.decision.calls += 1
    plan.decision.tokens += tokens
    return result


def reset() -> None:
    """Forget every choice, so that the next call decides anew. For tests."""
    _plans.clear()
    ledger.decisions.clear()


def _make_plan(key: tuple[Any, ...]) -> Plan:
    device, backend = key[0], key[-1] or env.settings().backend
    spec = _spec_of(*key[:-1])
    return choose(spec, device) if backend == "auto" else force(backend, spec, device)


def _spec_of(
    device: Any,
    logits_dtype: Any,
    experts: int,
    bias_device: Any,
    bias_dtype: Any,
    bias_dim: int,
    bias_experts: int,
    topk: int,
    renormalize: bool,
    num_expert_group: int | None,
    topk_group: int | None,
    num_fused_shared_experts: int,
    routed_scaling_factor: float | None,
    apply_routed_scaling_factor_on_output: bool | None,
) -> RouterSpec:
    """The validated specification of a cache key; the parameters are its parts, in order."""
    if bias_device != device:
        raise ValueError(f"correction_bias is on {bias_device}, expected {device} as gating_output")
    if bias_dim not in (1, 2) or bias_experts != experts:
        raise ValueError(
            f"correction_bias has {bias_dim} dimensions, the last of {bias_experts}, expected "
            f"[{experts}] or [tokens, {experts}], one value per expert"
        )
    for name, value in (
        ("topk", topk),
        ("num_fused_shared_experts", num_fused_shared_experts),
    ):
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"{name} is {value!r}, expected an int")
    return RouterSpec(
        num_experts=experts,
        topk=topk,
        num_expert_group=num_expert_group or 1,
        topk_group=topk_group or (0 if (num_expert_group or 1) > 1 else 1),
        num_fused_shared_experts=num_fused_shared_experts,
        renormalize=bool(renormalize),
        routed_scaling_factor=1.0 if routed_scaling_factor is None else routed_scaling_factor,
        apply_routed_scaling_factor_on_output=bool(apply_routed_scaling_factor_on_output),
        logits_dtype=logits_dtype,
        bias_dtype=bias_dtype,
        per_token_bias=bias_dim == 2,
        device_type=device.type,
    )
