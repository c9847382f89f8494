"""Every family of SGLang that routes with a correction bias is checked, whatever its gate."""

from __future__ import annotations

import ast
import functools
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_support.sglang_blocks import BLOCKS

from sglang_moe_ext.ci import register_cpu_ci, run_file
from sglang_moe_ext.parameters import BIAS_NAMES

register_cpu_ci(est_time=35, suite="base-a-test-cpu")

(SGLANG,) = importlib.util.find_spec("sglang").submodule_search_locations  # type: ignore[union-attr]
MODELS = Path(SGLANG) / "srt" / "models"
BIAS = re.compile(r"(correction|expert|rout\w*|score)_?\w*bias|bias_\w*(expert|rout|score)")


def parameters_made(tree: ast.AST) -> Iterator[str]:
    """Names of attributes that become parameters: `x.NAME = nn.Parameter(...)` and the like."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Call):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if ast.unparse(node.value.func).endswith("Parameter"):
                yield from (each.attr for each in targets if isinstance(each, ast.Attribute))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("register_parameter"):
            yield from (a.value for a in node.args[:1] if isinstance(a, ast.Constant))


@functools.cache
def made_by_models() -> dict[str, set[str]]:
    """Parameter name -> the modules below sglang.srt.models that make one."""
    made: dict[str, set[str]] = {}
    for file in MODELS.rglob("*.py"):
        module = ".".join(file.relative_to(MODELS).with_suffix("").parts)
        for name in parameters_made(ast.parse(file.read_text(encoding="utf-8"))):
            made.setdefault(name, set()).add(module)
    return made


def test_no_model_has_a_bias_of_another_name() -> None:
    """By its name in the sources; what a TopK holds under another name is found in the model."""
    found = {name: modules for name, modules in made_by_models().items() if BIAS.search(name)}
    assert len(found.get("e_score_correction_bias", ())) > 10, "the sources are not read rightly"
    assert {name: files for name, files in found.items() if name not in BIAS_NAMES} == {}


def test_every_model_with_a_bias_is_built_here() -> None:
    """Subclasses and models that build another's block are not: they make no parameter."""
    making = set().union(*(made_by_models().get(name, set()) for name in BIAS_NAMES))
    assert making - set(BLOCKS) == set()


@pytest.fixture(scope="module")
def blocks() -> dict[str, Any]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("SGLANG_", "PLAIN_CPU"))}
    done = subprocess.run(
        [sys.executable, "-m", "test_support.sglang_blocks"],
        env={**clean, "SGLANG_PLATFORM": "plain_cpu", "SGLANG_MOE_EXT_STRICT": "1"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {line["family"]: line for line in lines}


@pytest.mark.parametrize("family", BLOCKS)
def test_the_bias_of_a_family(blocks: dict[str, Any], family: str) -> None:
    """Known, complete, and nothing of it stale after an update of the built block."""
    block = blocks[family]
    assert block["names"], "no bias is known"
    assert block["topks"] >= 1
    assert block["kept"], "a copy made with .data is stale"
    assert block["held"], "a TopK routes with something else"
    assert block["cast"], "SGLang's cached cast is stale"
    for name, refusal in block["without"].items():
        assert f"{name} " in refusal, "a load without the bias is not refused"
        assert "no value was loaded" in refusal
        assert name in block["bypassed"], "a loader that bypasses load_weights is not noticed"
    assert "not finite" in block["nan"]
    assert all(block["still"]), "a refused update changed the bias"


def test_only_experts_are_rebalanced(blocks: dict[str, Any]) -> None:
    """A gate or bias among them would be permuted with the experts of this rank."""
    assert blocks["deepseek_v2"]["rebalanced"]
    for family, block in blocks.items():
        for name in block["rebalanced"] or ():
            assert name.startswith("mlp.experts."), f"{family}: {name}"


if __name__ == "__main__":
    run_file(__file__)
