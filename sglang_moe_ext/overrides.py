"""What is replaced in SGLang: one row per target, and what keeps us from replacing it."""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from sglang_moe_ext import host, signatures
from sglang_moe_ext.installation import Installed, Target

TOPK = "sglang.srt.layers.moe.topk"
DEEPSEEK_V2 = "sglang.srt.models.deepseek_v2"
LOADER = "sglang.srt.model_loader.loader"
# Where online updates are written: 0.5.16 ... 0.5.23, and before.
UPDATER, UPDATER_CLASS = (
    ("sglang.srt.model_executor.model_runner_components.weight_updater", "WeightUpdater")
    if host.exists("sglang.srt.model_executor.model_runner_components.weight_updater")
    else ("sglang.srt.model_executor.model_runner", "ModelRunner")
)


def _router(original: Any) -> Any:
    from sglang_moe_ext.router import make_mapping_router, make_router

    if ids_finished().by == "router":
        return make_mapping_router(original, sys.modules[TOPK].topk_ids_logical_to_physical)
    return make_router(original)


def _post_processor(original: Any) -> Any:
    from sglang_moe_ext.router import make_post_processor

    return make_post_processor(original, sys.modules[TOPK].topk_ids_logical_to_physical)


def _gate(original: Any) -> Any:
    from sglang_moe_ext.gate import make_gate

    return make_gate(original, confirm=INSTALLED.confirm)


def _initializer(original: Any) -> Any:
    from sglang_moe_ext.loading import make_initializer

    return make_initializer(original)


def _direct_loader(original: Any) -> Any:
    from sglang_moe_ext.loading import make_direct_loader

    return make_direct_loader(original)


def _tensor_updater(original: Any) -> Any:
    from sglang_moe_ext.loading import make_tensor_updater

    return make_tensor_updater(original)


TARGETS = (
    Target(
        TOPK,
        "biased_grouped_topk_gpu",
        caller="select_experts",
        called_as="biased_grouped_topk",
        parameters=MappingProxyType({"": signatures.ROUTERS}),
        replacement=_router,
        reason="ties, 16-bit scores, underflow and empty batches go wrong; slow off CUDA",
        remove_when="SGLang routes exactly on every device",
    ),
    Target(
        DEEPSEEK_V2,
        "MoEGate",
        caller="DeepseekV2MoE",
        called_as="MoEGate",
        parameters=MappingProxyType(
            {"__init__": signatures.GATE_INITS, "forward": signatures.GATE_FORWARDS}
        ),
        replacement=_gate,
        reason="bf16 logits and a bf16 bias change which experts run",
        remove_when="SGLang's gate emits float32 logits and keeps a float32 bias everywhere",
    ),
    Target(
        LOADER,
        "_initialize_model",
        caller="DefaultModelLoader",
        called_as="_initialize_model",
        parameters=MappingProxyType({"": signatures.MODEL_INITIALIZERS}),
        replacement=_initializer,
        reason="a gate or bias that is missing, broken or rounded away loads without a word",
        remove_when="SGLang checks that every routing parameter was loaded and is finite",
    ),
    Target(
        UPDATER,
        "_model_load_weights_direct",
        caller=UPDATER_CLASS,
        called_as="_model_load_weights_direct",
        parameters=MappingProxyType({"": signatures.DIRECT_LOADERS}),
        replacement=_direct_loader,
        reason="an update with load_format=direct goes past the model's load_weights",
        remove_when="SGLang checks that every routing parameter was loaded and is finite",
    ),
    Target(
        UPDATER,
        f"{UPDATER_CLASS}.update_weights_from_tensor",
        caller=None,
        called_as=f"{UPDATER_CLASS}.update_weights_from_tensor",
        parameters=MappingProxyType({"": signatures.TENSOR_UPDATERS}),
        replacement=_tensor_updater,
        reason="what is refused while tensors are updated would end the server",
        remove_when="SGLang answers a failed update_weights_from_tensor instead of raising",
    ),
)

# Only where SGLang forgets it: see `ids_finished`.
POST_PROCESSOR = Target(
    TOPK,
    "_post_process_topk_ids",
    caller="select_experts",
    called_as="_post_process_topk_ids",
    parameters=MappingProxyType({"": signatures.POST_PROCESSORS}),
    replacement=_post_processor,
    reason="on XPU and CPU padded rows reach real experts and EPLB's remapping is lost",
    remove_when="no SGLang older than 0.5.23 is served",
)


@dataclass(frozen=True)
class IdsFinished:
    """Who maps routed ids to physical experts and masks padded rows on XPU and CPU.

    by: "sglang", "router" (which is ours), "us" (we restore it), or "unknown".
    why: what was found that says so.
    """

    by: str
    why: str


@functools.cache
def ids_finished() -> IdsFinished:
    """What this SGLang's source says of it; raises nothing."""
    try:
        if host.parameters(TOPK, "biased_grouped_topk_gpu") == signatures.ROUTER_THAT_MAPS:
            return IdsFinished(
                "router", "biased_grouped_topk_gpu takes expert_location_dispatch_info"
            )
        branches = host.branches(TOPK, POST_PROCESSOR.name, "_is_cuda")
    except LookupError as error:
        return IdsFinished("unknown", str(error))
    why = f"{POST_PROCESSOR.name} has the branches {', '.join(branches)}"
    if branches in signatures.GPU_ONLY_BRANCHES:
        return IdsFinished("us", why)
    return IdsFinished("sglang" if branches[-1] == "else" else "unknown", why)


def targets() -> tuple[Target, ...]:
    """What is replaced in this SGLang."""
    return (*TARGETS, POST_PROCESSOR) if ids_finished().by == "us" else TARGETS


def problems() -> list[str]:
    """What about the installed SGLang keeps us from overriding it; empty if nothing."""
    found = []
    for target in targets():
        try:
            if target.caller and not host.calls_by_name(
                target.module, target.caller, target.called_as
            ):
                found.append(
                    f"{target.module}.{target.caller} does not call {target.called_as}, "
                    f"expected a call that replacing {target.name} would reach"
                )
            for method, known in target.parameters.items():
                qualname = f"{target.name}.{method}" if method else target.name
                names = host.parameters(target.module, qualname)
                if names not in known:
                    expected = " or ".join(f"({', '.join(each)})" for each in known)
                    found.append(
                        f"{target.module}.{qualname} takes ({', '.join(names)}), "
                        f"expected {expected}"
                    )
        except LookupError as error:
            found.append(f"{error}, expected {target.path}")
    return found


INSTALLED = Installed(targets)
