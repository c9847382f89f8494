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
# SGLang's `topk_ids_logical_to_physical`: (ids, dispatch info) -> ids.
ToPhysical = Callable[[Tensor, object], Tensor]


def make_router(original: Router) -> Router:
    """A replacement for `biased_grouped_topk_gpu` that falls back to `original`."""
    served = _served()
    may_fall_back = env.settings().backend == "auto"
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
        call = (
            gating_output,
            correction_bias,
            topk,
            renormalize,
            num_expert_group,
            topk_group,
            num_fused_shared_experts,
            routed_scaling_factor,
            apply_routed_scaling_factor_on_output,
        )
        if gating_output.device not in served:
            return elsewhere("this device is left to SGLang", hidden_states, call)
        if hidden_states.shape[0] != gating_output.shape[0]:
            raise ValueError(
                f"gating_output has {gating_output.shape[0]} rows, expected "
                f"{hidden_states.shape[0]} as hidden_states"
            )
        try:
            return biased_grouped_topk(*call)
        except BackendError as error:
            if not may_fall_back:
                raise
            return elsewhere(str(error), hidden_states, call)

    # functools.wraps copies a reference that says "we wrap it"; we replace it.
    del route.__wrapped__
    route.withdraw = served.clear  # type: ignore[attr-defined]
    return route


def make_mapping_router(original: Router, to_physical: ToPhysical) -> Router:
    """The same for SGLang up to 0.5.9, whose router also finishes the ids."""
    route = make_router(original)

    @functools.wraps(original)
    def route_and_map(
        *args: Any,
        num_fused_shared_experts: int = 0,
        num_token_non_padded: Tensor | None = None,
        expert_location_dispatch_info: object = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        # Also when the original answers: without the two it leaves the ids logical.
        weights, ids = route(*args, num_fused_shared_experts=num_fused_shared_experts, **kwargs)
        routed = ids.shape[1] - num_fused_shared_experts
        return weights, _map_and_mask(
            ids, routed, expert_location_dispatch_info, num_token_non_padded, to_physical
        )

    del route_and_map.__wrapped__
    route_and_map.withdraw = route.withdraw  # type: ignore[attr-defined]
    return route_and_map


def make_post_processor(original: Callable[..., Any], to_physical: ToPhysical) -> Any:
    """A replacement for `_post_process_topk_ids` of SGLang 0.5.10 ... 0.5.22.

    Those finish the ids on GPUs only; this one does it on XPU and CPU too, for grouped routing.
    Ungrouped routing is not ours, and in 0.5.12 its router has finished them already.
    """
    served = {device for device in _served() if device.type in ("cpu", "xpu")}

    @functools.wraps(original)
    def post_process(
        topk_ids: Tensor,
        topk_weights: Tensor,
        topk_config: Any,
        router_logits: Tensor,
        layer_id: int,
        num_token_non_padded: Tensor | None = None,
        expert_location_dispatch_info: object = None,
        **kwargs: Any,
    ) -> Any:
        # First, because it hands the ids to recorders that want logical ones.
        answer = original(
            topk_ids,
            topk_weights,
            topk_config,
            router_logits,
            layer_id,
            num_token_non_padded,
            expert_location_dispatch_info,
            **kwargs,
        )
        ids, weights, *recorded = answer
        # Other ids than it was given: SGLang has mapped them after all.
        if topk_ids.device not in served or ids is not topk_ids or not topk_config.use_grouped_topk:
            return answer
        routed = ids.shape[1] - topk_config.num_fused_shared_experts
        ids = _map_and_mask(
            ids, routed, expert_location_dispatch_info, num_token_non_padded, to_physical
        )
        return (ids, weights, ids[:, :routed]) if recorded else (ids, weights)

    del post_process.__wrapped__
    post_process.withdraw = served.clear  # type: ignore[attr-defined]
    return post_process


def _map_and_mask(
    ids: Tensor,
    routed: int,
    dispatch_info: object,
    valid_rows: Tensor | None,
    to_physical: ToPhysical,
) -> Tensor:
    """Ids as the experts' kernels want them: physical, and -1 in padded rows.

    ids: [T, K] logical, of any integer type, which is kept; the first `routed` columns name
        routed experts, the others shared slots, which no table knows.
    dispatch_info: SGLang's ExpertLocationDispatchInfo; None where logical ids are physical.
    valid_rows: a scalar on the device of `ids`, the rows from there on are padding; None: none is.
    """
    if dispatch_info is not None:
        physical = to_physical(ids[:, :routed], dispatch_info).to(ids.dtype)
        ids = torch.cat((physical, ids[:, routed:]), dim=1)
    if valid_rows is not None:
        rows = torch.arange(ids.shape[0], device=ids.device)
        ids = ids.masked_fill((rows >= valid_rows)[:, None], -1)
    return ids


class _Upstream:
    """The saved original, with its calls on the ledger like those of any backend."""

    def __init__(self, original: Router) -> None:
        self._original = original
        self._decisions: dict[tuple[object, ...], Decision] = {}

    def __call__(
        self, reason: str, hidden_states: Tensor, call: tuple[Any, ...]
    ) -> tuple[Tensor, Tensor]:
        """call: what `biased_grouped_topk` takes, in its order."""
        gating_output, _, topk, _, num_expert_group, *_ = call
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
        # The last one's position differs between releases.
        *positional, apply = call
        return self._original(
            hidden_states, *positional, apply_routed_scaling_factor_on_output=apply
        )


def _served() -> set[torch.device]:
    """The devices on which the router is ours; ROCm's call themselves "cuda", too."""
    settings = env.settings()
    if settings.backend == "upstream":
        return set()
    # All that could be: asking torch which there are might initialise them.
    gpu, numbers = ("rocm" if torch.version.hip else "cuda"), range(MAX_DEVICES)
    ours = {
        "cpu": [torch.device("cpu")],
        gpu: [torch.device("cuda", number) for number in numbers],
        "xpu": [torch.device("xpu", number) for number in numbers],
    }
    return {device for name in settings.devices for device in ours.get(name, [])}
