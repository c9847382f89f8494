"""The table of guards still describes the code; `test/mutations/mutate.py` takes them away."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "mutations"))
import mutate

from sglang_moe_ext.ci import register_cpu_ci, run_file

register_cpu_ci(est_time=3, suite="base-a-test-cpu")

GUARDS = list(mutate.read_guards())


@pytest.mark.parametrize("file", {guard.file: None for guard in GUARDS})
def test_without_a_guard_it_is_still_python(file: str) -> None:
    """Else a syntax error would be what the tests notice."""
    text = (mutate.ROOT / file).read_text(encoding="utf-8")
    for guard in GUARDS:
        if guard.file == file:
            ast.parse(text.replace(guard.old, guard.new))


def test_the_tests_that_are_to_notice_exist() -> None:
    tests = {test for guard in GUARDS for test in guard.tests if "/" in test}
    assert [
        test for test in sorted(tests) if not (mutate.ROOT / test.partition("::")[0]).is_file()
    ] == []


def test_every_file_that_decides_a_route_has_guards() -> None:
    package = mutate.ROOT / "sglang_moe_ext"
    routing = {f"ops/{path.name}" for path in (package / "ops").glob("*.py")}
    without = {"ops/__init__.py", "ops/backend.py", "ops/compiled.py"}  # types and names only
    without |= {"ops/cpu_layout.py", "ops/cpu_simd.py"}  # every route goes through each line
    guarded = {guard.file.removeprefix("sglang_moe_ext/") for guard in GUARDS}
    assert routing - without - guarded == set()


if __name__ == "__main__":
    run_file(__file__)
