"""What we know of the SGLang beside us, read without importing its model code.

Targets are checked in the source text, so a launcher or detokenizer that never builds a
model doesn't pay for importing one.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import re
import sys
from collections.abc import Callable, Iterator
from functools import cache, lru_cache
from pathlib import Path
from typing import Any


def release() -> str | None:
    """The installed SGLang release, or None."""
    try:
        return importlib.metadata.version("sglang")
    except importlib.metadata.PackageNotFoundError:
        return None


def exists(module: str) -> bool:
    """Has the SGLang beside us this module? Says nothing of what is in it."""
    try:
        return bool(_source(module))
    except (LookupError, ImportError):
        return False


def parameters(module: str, qualname: str) -> tuple[str, ...]:
    """Parameter names of a function or method, as the source text has them.

    Raises LookupError saying what is not there.
    """
    function = _definition(module, qualname)
    if not isinstance(function, ast.FunctionDef):
        raise LookupError(f"{module}.{qualname} is not a function")
    arguments = function.args
    names = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    names += [f"*{arguments.vararg.arg}"] if arguments.vararg else []
    names += [f"**{arguments.kwarg.arg}"] if arguments.kwarg else []
    return tuple(names)


def calls_by_name(module: str, caller: str, callee: str) -> bool:
    """Does the body of `caller` call the module-level name `callee`? Raises LookupError."""
    return any(
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == callee
        for node in ast.walk(_definition(module, caller))
    )


def branches(module: str, function: str, first: str) -> tuple[str, ...]:
    """Conditions of the if-elif chain at the top of a function's body that starts with `first`.

    The last is "else" if the chain has one. Raises LookupError.
    """
    definition: Any = _definition(module, function)
    for statement in definition.body:
        if not isinstance(statement, ast.If) or ast.unparse(statement.test) != first:
            continue
        conditions, rest = [first], statement.orelse
        while len(rest) == 1 and isinstance(rest[0], ast.If):
            conditions.append(ast.unparse(rest[0].test))
            rest = rest[0].orelse
        return (*conditions, *["else"][: len(rest)])
    raise LookupError(f"{module}.{function} has no branch `if {first}`")


def after_hooks(callback: Callable[[], None]) -> None:
    """Run `callback` once, when SGLang has applied the hooks of every plugin.

    Plugins run one after another and their hooks are applied in the end, so only then can
    be seen whether another plugin took a target of ours. SGLang offers no later moment in
    which a plugin runs; a release without hooks has nothing to wait for.
    """
    registry = _hook_registry()
    if registry is None:
        callback()
        return
    original = registry.__dict__["apply_hooks"]

    def apply_hooks_then_call_back(cls: Any) -> None:
        registry.apply_hooks = original
        registry.apply_hooks()
        callback()

    registry.apply_hooks = classmethod(apply_hooks_then_call_back)


def foreign_hooks(targets: set[str]) -> Iterator[tuple[str, str, str]]:
    """Other plugins' hooks on our targets: (target, kind such as "replace", plugin)."""
    registry = _hook_registry()
    for target, hooks in getattr(registry, "_hooks", {}).items():
        for hook_type, _, source in hooks:
            if target in targets:
                plugin = getattr(source, "plugin_name", None) or "without a name"
                yield target, hook_type.value, plugin


def _hook_registry() -> Any:
    module = sys.modules.get("sglang.srt.plugins.hook_registry")
    return getattr(module, "HookRegistry", None)


def _definition(module: str, qualname: str) -> ast.stmt:
    outer, _, inner = qualname.partition(".")
    scope: Any = _parsed(module, outer)
    for part in inner.split(".") if inner else ():
        named = [
            node
            for node in scope.body
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == part
        ]
        if not named:
            raise LookupError(f"{module}.{qualname} does not exist")
        scope = named[-1]
    return scope  # type: ignore[no-any-return]


@lru_cache(maxsize=2)  # what is looked at twice is looked at in a row
def _parsed(module: str, name: str) -> ast.stmt:
    return ast.parse(_block(module, name)).body[0]


def _block(module: str, name: str) -> str:
    """Source of a top-level function or class.

    Only what is looked at is parsed: a whole file of SGLang's takes a good part of a second in
    a process that holds as many objects as a worker does.
    """
    found = re.search(
        rf"^(?:def|class) {name}\b.*?(?=^[^\s)\]#]|\Z)", _source(module), re.DOTALL | re.MULTILINE
    )
    if found is None:
        raise LookupError(f"{module}.{name} does not exist")
    return found[0]


@cache
def _source(module: str) -> str:
    package, _, rest = module.partition(".")
    spec = importlib.util.find_spec(package)
    roots = (spec.submodule_search_locations if spec else None) or []
    for root in roots:
        path = Path(root, *rest.split(".")).with_suffix(".py")
        if path.is_file():
            return path.read_text(encoding="utf-8")
    raise LookupError(f"{module} has no source file under {list(roots) or 'any package'}")
