"""Faults in the real SGLang 0.5.23: stock to the routed call and one message, or refusal."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from test_support.stub_host import Probe, add_plugin, run_python

from sglang_moe_ext import overrides
from sglang_moe_ext.ci import register_cpu_ci, run_file

register_cpu_ci(est_time=120, suite="base-a-test-cpu", nightly=True)

TOPK, MODEL = "srt/layers/moe/topk.py", "srt/models/deepseek_v2.py"

# Prints one JSON line: what a call routed through SGLang gave, and whose the pieces are.
PROBE = """
import importlib, json, torch
from sglang.srt.plugins import load_plugins
load_plugins()
from sglang.srt.layers.moe import topk
from sglang.srt.models import deepseek_v2
from sglang_moe_ext import ledger, overrides
generator = torch.Generator().manual_seed(0)
logits, bias = torch.randn(9, 64, generator=generator), torch.randn(64, generator=generator)
config = topk.TopKConfig(top_k=4, use_grouped_topk=True, num_expert_group=4, topk_group=2,
                         correction_bias=bias)
found = topk.select_experts(torch.zeros(9, 8), logits, config)
print(json.dumps({
    "ids": found.topk_ids.sort(dim=1).values.tolist(),
    "ours": [t.name for t in overrides.TARGETS
             if importlib.import_module(t.module) and overrides.INSTALLED.reaches(t)],
    "calls": sum(decision.calls for decision in ledger.decisions),
    "tree": topk.__file__,
}))
"""


class RealTree:
    """The installed SGLang under `folder`, by links except for the files that are edited."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (installed,) = importlib.util.find_spec("sglang").submodule_search_locations  # type: ignore
        self.installed = Path(installed)

    def edit(self, path: str, *changes: tuple[str, str]) -> None:
        text = (self.installed / path).read_text(encoding="utf-8")
        for old, new in changes:
            assert old in text, f"{old!r} is not in {path}"
            text = text.replace(old, new)
        for parent in reversed(Path(path).parents):
            (self.folder / "sglang" / parent).mkdir(parents=True)
            for entry in (self.installed / parent).iterdir():
                if entry.name != "__pycache__":
                    (self.folder / "sglang" / parent / entry.name).symlink_to(entry)
            # The next folder on the way, or the file itself, is not a link.
            step = Path(path).relative_to(parent).parts[0]
            (self.folder / "sglang" / parent / step).unlink()
        (self.folder / "sglang" / path).write_text(text, encoding="utf-8")

    def probe(self, **environment: str) -> Probe:
        return run_python(PROBE, self.folder, environment)


@pytest.fixture
def tree(tmp_path: Path) -> RealTree:
    return RealTree(tmp_path)


@pytest.fixture(scope="module")
def expected() -> list[list[int]]:
    """What a healthy server routes; without ties stock and ours agree."""
    probe = run_python(PROBE, None, {"SGLANG_MOE_EXT_STRICT": "1"})
    assert probe.report["calls"] == 1, probe.log
    assert probe.report["ours"] == [target.name for target in overrides.TARGETS]
    return probe.report["ids"]


FAULTS = {
    "parameter added": (
        TOPK,
        [("def biased_grouped_topk_gpu(\n", "def biased_grouped_topk_gpu(\n    *, stream=None,\n")],
        "biased_grouped_topk_gpu takes (",
    ),
    "router renamed": (
        TOPK,
        [("biased_grouped_topk_gpu", "biased_grouped_topk_device")],
        "biased_grouped_topk_gpu does not exist",
    ),
    "class moved": (
        MODEL,
        [
            ("class MoEGate(", "class _Gate("),
            ("\nclass DeepseekV2MoE(", "\nMoEGate = _Gate\n\n\nclass DeepseekV2MoE("),
        ],
        "MoEGate does not exist",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_changed_sglang_routes_stock_and_says_why_once(
    tree: RealTree, fault: str, expected: list[list[int]]
) -> None:
    path, changes, message = FAULTS[fault]
    tree.edit(path, *changes)
    probe = tree.probe()
    assert probe.report["ours"] == [], probe.log
    assert probe.report["calls"] == 0
    assert probe.report["ids"] == expected
    assert probe.report["tree"].startswith(str(tree.folder))
    (error,) = probe.errors()
    assert message in error
    assert tree.probe(SGLANG_MOE_EXT_STRICT="1").code == 1


@pytest.mark.parametrize("name", ["aaa_other", "zzz_other"], ids=["before us", "after us"])
def test_a_second_plugin_keeps_its_target_and_we_leave_all(tree: RealTree, name: str) -> None:
    add_plugin(
        tree.folder,
        name,
        "import torch\n"
        "from sglang.srt.plugins.hook_registry import HookRegistry, HookType\n"
        "def theirs(hidden_states, topk, **kwargs):\n"
        "    rows = hidden_states.shape[0]\n"
        "    return torch.ones(rows, topk), torch.arange(topk).int().expand(rows, topk)\n"
        "def register():\n"
        "    HookRegistry.register('sglang.srt.layers.moe.topk.biased_grouped_topk', theirs,\n"
        "                          HookType.REPLACE)\n",
    )
    probe = tree.probe()
    assert probe.report["ours"] == [], probe.log
    assert probe.report["ids"] == [[0, 1, 2, 3]] * 9
    (error,) = probe.errors()
    assert f"replaced: sglang.srt.layers.moe.topk.biased_grouped_topk by {name}" in error
    assert tree.probe(SGLANG_MOE_EXT_STRICT="1").code == 1


if __name__ == "__main__":
    run_file(__file__)
