"""Put replacements in place, all or none; see whether they are reached; take them back.

A replacement is put in place when SGLang imports the target's module (at once if it already
has), through wrapt's post-import hooks. SGLang's own HookRegistry would import the model
code in every process; and an original kept as a module global would be rewritten with it.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from operator import attrgetter
from types import MappingProxyType, ModuleType
from typing import Any

from sglang_moe_ext import __version__, host, refusal

logger = logging.getLogger(__name__)

ORIGINAL = "__sglang_moe_ext_original__"


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


class Installed:
    """The replacements in place in this process, and the way back."""

    def __init__(self, expected: Callable[[], Iterable[Target]]) -> None:
        """expected: all targets of this SGLang, also those whose module is not imported yet."""
        self._expected = expected
        self._undo: list[tuple[Any, str, Any, Any]] = []
        self._refused = False
        self._confirmed = False

    def install(self, targets: Iterable[Target]) -> None:
        """Replace `targets` everywhere they are bound; those that are ours already stay."""
        if self._refused:
            return
        replacements, classes = {}, []
        for target in targets:
            module = sys.modules[target.module]
            original = attrgetter(target.name)(module)
            if hasattr(original, ORIGINAL):
                continue
            replacement = target.replacement(original)
            setattr(replacement, ORIGINAL, original)
            replacements[id(original)] = replacement
            owner, _, _ = target.name.rpartition(".")
            classes += [attrgetter(owner)(module)] if owner else []
        if not replacements:
            return
        # The alias that callers use is a second name in the same module; other modules may
        # have imported the original before us.
        modules = [each for each in sys.modules.values() if isinstance(each, ModuleType)]
        for holder in (*classes, *modules):
            for name, value in list(vars(holder).items()):
                if id(value) in replacements:
                    setattr(holder, name, replacements[id(value)])
                    self._undo.append((holder, name, value, replacements[id(value)]))

    def reaches(self, target: Target) -> bool:
        """Do callers in `target`'s imported module call us? Through another's wrapper, too."""
        function = _called(target)
        while function is not None:
            if any(function is replacement for *_, replacement in self._undo):
                return True
            function = getattr(function, "__wrapped__", None)  # functools.wraps
        return False

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
        imported = [target for target in self._expected() if target.module in sys.modules]
        names = {f"{t.module}.{n}" for t in imported for n in (t.name, t.called_as)}
        found = [
            f"replaced: {target} by {plugin}"
            for target, kind, plugin in host.foreign_hooks(names)
            if kind == "replace"
        ]
        found += [
            f"{target.module}.{target.called_as} is {_called(target)!r}, expected our replacement"
            for target in imported
            if not self.reaches(target)
        ]
        return found


def _called(target: Target) -> Any:
    """What the name that callers use means now, None if nothing."""
    try:
        return attrgetter(target.called_as)(sys.modules[target.module])
    except AttributeError:
        return None
