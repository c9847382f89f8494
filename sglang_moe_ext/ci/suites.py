"""Which suite names exist: SGLang's own, where its source tree is at hand, and ours."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Mapping
from pathlib import Path

# The names of SGLang's test/run_suite.py that our files use or may use. No wheel carries that
# table (0.5.23 checked). Backends that are missing here take any name unless it is found.
OUR_SUITES: Mapping[str, frozenset[str]] = {
    "cpu": frozenset({"base-a-test-cpu"}),
    "cuda": frozenset({"base-a-test-1-gpu-small", "base-b-test-1-gpu-large"}),
    "xpu": frozenset({"stage-a-test-1-gpu-xpu", "stage-b-test-1-gpu-xpu", "nightly-xpu-1-gpu"}),
}


def known_suites(runner: Path | None = None) -> dict[str, frozenset[str]]:
    """Suite names by backend: ours, and those of SGLang's runner.

    runner: SGLang's test/run_suite.py; by default that of the installed SGLang, which has one
        when it was installed from its source tree (as XPU builds are) and not from a wheel.

    Raises ValueError when a runner is found but no suite table in it.
    """
    runner = runner or _installed_runner()
    theirs = read_suites(runner) if runner else {}
    return {
        backend: OUR_SUITES.get(backend, frozenset()) | theirs.get(backend, frozenset())
        for backend in OUR_SUITES.keys() | theirs.keys()
    }


def read_suites(runner: Path) -> dict[str, frozenset[str]]:
    """Suite names in the module-level tables {HWBackend.X: ["name", …]} of SGLang's runner."""
    suites: dict[str, frozenset[str]] = {}
    for statement in ast.parse(runner.read_text(encoding="utf-8"), filename=str(runner)).body:
        if not (isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Dict)):
            continue
        for key, value in zip(statement.value.keys, statement.value.values, strict=True):
            if isinstance(key, ast.Attribute) and isinstance(value, ast.List):
                names = (item.value for item in value.elts if isinstance(item, ast.Constant))
                backend = key.attr.lower()
                found = frozenset(name for name in names if isinstance(name, str))
                suites[backend] = suites.get(backend, frozenset()) | found
    if not suites:
        raise ValueError(
            f"{runner}: no suite table found, expected {{HWBackend.X: [names]}} at module level; "
            "did SGLang change its format? Then sglang_moe_ext.ci.suites must follow"
        )
    return suites


def _installed_runner() -> Path | None:
    spec = importlib.util.find_spec("sglang")
    if spec is None or spec.origin is None:
        return None
    runner = Path(spec.origin).parents[2] / "test" / "run_suite.py"  # python/sglang/__init__.py
    return runner if runner.is_file() else None
