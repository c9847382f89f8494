"""SGLang's router arguments -> our operation, or the original where we don't serve."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sglang_moe_ext import env, ledger
from sglang_moe_ext.ledger import Decision
from sglang_moe_ext.ops.choose import BackendError
from sglang_moe_ext.ops.dispatch import biased_grouped_topk

logger = logging.getLogger(__name__)

MAX_DEVICES = 64
Router = Callable[..., tuple[Tensor, Tensor]]


def make_router(original: Router) -> Router:
    """A replacement for `biased_grouped_topk_gpu` that falls back to `original`."""
    settings = env.settings()
    served = _served_devices(settings.devices) if settings.backend != "upstream" else set()
    may_fall_back = settings.backend == "auto"
    elsewhere = _Upstream(original)

    @functools.wraps(original)
    def route(
        hidden_states: Tensor,
        gating_output: Tensor,
        correction_bias: Tensor,
        topk: int,
        renormalize: bool,
        num_expert_group: int | None = None,
        topk_group: int | None = None,
        num_fused_shared_experts: int = 0,
        routed_scaling_factor: float | None = None,
        apply_routed_scaling_factor_on_output: bool | None = False,
    ) -> tuple[Tensor, Tensor]:
        arguments = (
            topk,
            renormalize,
            num_expert_group,
            topk_group,
            num_fused_shared_experts,
            routed_scaling_factor,
            apply_routed_scaling_factor_on_output,
        )
        if gating_output.device not in served:
            return elsewhere(
                "this device is left to SGLang",
                hidden_states,
                gating_output,
                correction_bias,
                *arguments,
            )
        if hidden_states.shape[0] != gating_output.shape[0]:
            raise ValueError(
                f"gating_output has {gating_output.shape[0]} rows, expected "
                f"{hidden_states.shape[0]} as hidden_states"
            )
        try:
            return biased_grouped_topk(gating_output, correction_bias, *arguments)
        except BackendError as error:
            if not may_fall_back:
                raise
            return elsewhere(str(error), hidden_states, gating_output, correction_bias, *arguments)

    # functools.wraps copies a reference that says "we wrap it"; we replace it.
    del route.__wrapped__
    route.withdraw = served.clear  # type: ignore[attr-defined]
    return route


def make_mapping_router(
    original: Router, map_and_mask: Callable[[Tensor, object, object], Tensor]
) -> Router:
    """The same for SGLang up to 0.5.9, whose router also finishes the ids.

    map_and_mask: that release's own (ids, expert_location_dispatch_info,
        num_token_non_padded) -> ids, from logical to physical experts, padded rows -1.
    """
    route = make_router(original)

    @functools.wraps(original)
    def route_and_map(
        *args: Any,
        num_token_non_padded: object = None,
        expert_location_dispatch_info: object = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        # Also when the original answers: without the two it leaves the ids logical.
        weights, ids = route(*args, **kwargs)
        return weights, map_and_mask(ids, expert_location_dispatch_info, num_token_non_padded)

    del route_and_map.__wrapped__
    route_and_map.withdraw = route.withdraw  # type: ignore[attr-defined]
    return route_and_map


class _Upstream:
    """The saved original, with its calls on the ledger like those of any backend."""

    def __init__(self, original: Router) -> None:
        self._original = original
        self._decisions: dict[tuple[object, ...], Decision] = {}

    def __call__(
        self,
        reason: str,
        hidden_states: Tensor,
        gating_output: Tensor,
        correction_bias: Tensor,
        topk: int,
        renormalize: bool,
        num_expert_group: int | None,
        topk_group: int | None,
        num_fused_shared_experts: int,
        routed_scaling_factor: float | None,
        apply_routed_scaling_factor_on_output: bool | None,
    ) -> tuple[Tensor, Tensor]:
        device, dtype, experts = gating_output.device, gating_output.dtype, gating_output.shape[-1]
        key = (device, dtype, experts, topk, num_expert_group)
        decision = self._decisions.get(key)
        if decision is None:
            shape = f"{experts}/{topk} g{num_expert_group}"
            name = str(dtype).removeprefix("torch.")
            decision = Decision("router", shape, str(device), name, "upstream", reason)
            self._decisions[key] = ledger.record(decision)
        decision.calls += 1
        decision.tokens += gating_output.shape[0]
        return self._original(
            hidden_states,
            gating_output,
            correction_bias,
            topk,
            renormalize,
            num_expert_group,
            topk_group,
            num_fused_shared_experts,
            routed_scaling_factor,
            # Its position differs between releases.
            apply_routed_scaling_factor_on_output=apply_routed_scaling_factor_on_output,
        )


def _served_devices(devices: frozenset[str]) -> set[torch.device]:
    """The devices that are ours; ROCm's call themselves "cuda", too."""
    # All that could be: asking torch which there are might initialise them.
    gpu, numbers = ("rocm" if torch.version.hip else "cuda"), range(MAX_DEVICES)
    ours = {
        "cpu": [torch.device("cpu")],
        gpu: [torch.device("cuda", number) for number in numbers],
        "xpu": [torch.device("xpu", number) for number in numbers],
    }
    return {device for name in devices for device in ours.get(name, [])}
