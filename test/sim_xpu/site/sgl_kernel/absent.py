"""Everything of `sgl_kernel` that isn't routing: importable, and an error when called."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from types import ModuleType

PACKAGE = __package__


class Absent:
    """A name that the real package has: attributes may be read, calls raise."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Absent:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        return Absent(f"{self._name}.{attribute}")

    def __call__(self, *args: object, **kwargs: object) -> object:
        raise NotImplementedError(f"simulated sgl_kernel has no {self._name}")


def getattr_of(module: str) -> Callable[[str], Absent]:
    """A module-level `__getattr__`."""

    def find(name: str) -> Absent:
        if name.startswith("__"):
            raise AttributeError(name)
        return Absent(f"{module}.{name}")

    return find


class Submodules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Any `sgl_kernel.x` that has no file here, except the hidden ones."""

    def __init__(self, hidden: list[str]) -> None:
        self._hidden = hidden

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not fullname.startswith(f"{PACKAGE}.") or fullname in self._hidden:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        module.__getattr__ = getattr_of(module.__name__)


def install(hidden: list[str]) -> None:
    sys.meta_path.append(Submodules(hidden))
