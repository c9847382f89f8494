"""What is replaced in SGLang: one row per target, checked first, then installed all or none.

A replacement is put in place when SGLang imports the target's module (at once if it already
has), through wrapt's post-import hooks. SGLang's own HookRegistry would import the model
code in every process; and an original kept as a module global would be rewritten with it.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from types import MappingProxyType, ModuleType
from typing import Any

from sglang_moe_ext import __version__, host, refusal, signatures

logger = logging.getLogger(__name__)

ORIGINAL = "__sglang_moe_ext_original__"

TOPK = "sglang.srt.layers.moe.topk"
DEEPSEEK_V2 = "sglang.srt.models.deepseek_v2"
LOADER = "sglang.srt.model_loader.loader"
# Where online updates are written: 0.5.16 ... 0.5.23, and before.
UPDATER, UPDATER_CLASS = (
    ("sglang.srt.model_executor.model_runner_components.weight_updater", "WeightUpdater")
    if host.exists("sglang.srt.model_executor.model_runner_components.weight_updater")
    else ("sglang.srt.model_executor.model_runner", "ModelRunner")
)


@dataclass(frozen=True)
class Target:
    """One thing that is replaced.

    name: the definition in `module`, "Class.method" for a method.
    caller, called_as: who calls it, and by which name; replacing another name would
        report success and change nothing. A method is reached through its class: no caller.
    parameters: per method ("" for the definition itself) the parameter lists we know.
    replacement: makes ours from the original, when the module has been imported.
    reason, remove_when: why the row exists and what would make it unnecessary.
    """

    module: str
    name: str
    caller: str | None
    called_as: str
    parameters: MappingProxyType[str, tuple[tuple[str, ...], ...]]
    replacement: Callable[[Any], Any]
    reason: str
    remove_when: str

    @property
    def path(self) -> str:
        return f"{self.module}.{self.name}"


def _router(original: Any) -> Any:
    from sglang_moe_ext.router import make_mapping_router, make_router

    if host.parameters(TOPK, "biased_grouped_topk_gpu") == signatures.ROUTER_THAT_MAPS:
        map_and_mask = sys.modules[TOPK]._biased_grouped_topk_postprocess
        return make_mapping_router(original, map_and_mask)
    return make_router(original)


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


def problems() -> list[str]:
    """What about the installed SGLang keeps us from overriding it; empty if nothing."""
    found = []
    for target in TARGETS:
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


class Installed:
    """The replacements in place in this process, and the way back."""

    def __init__(self) -> None:
        self._undo: list[tuple[Any, str, Any, Any]] = []
        self._refused = False
        self._confirmed = False

    def install(self, target: Target) -> None:
        """Replace `target` everywhere it is bound; nothing if it is ours already."""
        module = sys.modules[target.module]
        original = attrgetter(target.name)(module)
        if self._refused or hasattr(original, ORIGINAL):
            return
        replacement = target.replacement(original)
        setattr(replacement, ORIGINAL, original)
        owner, _, _ = target.name.rpartition(".")
        # The alias that callers use is a second name in the same module; other modules may
        # have imported the original before us.
        for holder in (
            [attrgetter(owner)(module)]
            if owner
            else [m for m in sys.modules.values() if isinstance(m, ModuleType)]
        ):
            for name, value in list(vars(holder).items()):
                if value is original:
                    setattr(holder, name, replacement)
                    self._undo.append((holder, name, original, replacement))

    def verify(self) -> None:
        """Refuse if another plugin took a target whose module is imported."""
        missing = self._missing()
        if missing:
            self.refuse(missing)

    def confirm(self) -> None:
        """Say once per process that we are live, when a model is being built, or refuse."""
        if not self._confirmed:
            self._confirmed = True
            self.verify()
            if not self._refused:
                logger.info("sglang-moe-ext %s is live: gate and router are ours", __version__)

    def refuse(self, reasons: list[str]) -> None:
        """Leave SGLang stock and say why, once; under strict, end the process."""
        if self._refused:
            return
        self._refused = True
        self._withdraw()
        refusal.refuse(reasons)

    def _withdraw(self) -> None:
        """Put every original back; what another plugin put over ours stays."""
        while self._undo:
            holder, name, original, replacement = self._undo.pop()
            if getattr(holder, name, None) is replacement:
                setattr(holder, name, original)
            # Another plugin's wrapper may still call ours.
            getattr(replacement, "withdraw", lambda: None)()

    def _missing(self) -> list[str]:
        """Imported targets whose callers would not reach us, with the reason."""
        imported = [target for target in TARGETS if target.module in sys.modules]
        names = {f"{t.module}.{n}" for t in imported for n in (t.name, t.called_as)}
        found = [
            f"replaced: {target} by {plugin}"
            for target, kind, plugin in host.foreign_hooks(names)
            if kind == "replace"
        ]
        for target in imported:
            called = lookup(sys.modules[target.module], target.called_as)
            if not leads_to_us(called):
                found.append(
                    f"{target.module}.{target.called_as} is {called!r}, expected our replacement"
                )
        return found


INSTALLED = Installed()


def lookup(module: object, name: str) -> Any:
    """What a dotted name of `module` means now, None if nothing."""
    try:
        return attrgetter(name)(module)
    except AttributeError:
        return None


def leads_to_us(function: Any) -> bool:
    """Ours, or another plugin's wrapper (functools.wraps) around ours."""
    while function is not None:
        if ORIGINAL in vars(function):
            return True
        function = getattr(function, "__wrapped__", None)
    return False
