"""What the README says of variables and files is what the code has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sglang_moe_ext import env
from sglang_moe_ext.ci import register_cpu_ci, run_file

register_cpu_ci(est_time=2, suite="base-a-test-cpu")

ROOT = Path(__file__).parents[3]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("variable", env.VARIABLES, ids=lambda variable: variable.name)
def test_the_table_has_every_variable_with_its_default(variable: env.Variable) -> None:
    assert f"| `{variable.name}` | {variable.default or 'unset'} |" in README


def test_every_module_is_on_the_map() -> None:
    start = README.index("## Module map")
    module_map = README[start : README.index("\n## ", start + 1)]
    modules = (ROOT / "sglang_moe_ext").glob("*.py"), (ROOT / "sglang_moe_ext/ops").glob("*.py")
    missing = [
        path.name
        for paths in modules
        for path in paths
        if not path.name.startswith("__")
        and path.name not in ("backend.py", "compiled.py")
        and path.name not in module_map
    ]
    assert missing == []


def test_every_linked_file_exists() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    missing = [link for link in links if not (ROOT / link).exists()]
    assert links
    assert missing == []


if __name__ == "__main__":
    run_file(__file__)
