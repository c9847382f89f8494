"""The installed SGLang, not a made one: its own select_experts and gate go through us."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import Any

import pytest

from sglang_moe_ext.ci import register_cpu_ci, run_file

register_cpu_ci(est_time=130, suite="base-a-test-cpu")

# Prints one JSON line: what each configuration gave, and what our ledger saw of it.
SELECT_EXPERTS = """
import json, torch
from sglang.srt.plugins import load_plugins
load_plugins()
from sglang.srt.layers.moe.topk import TopKConfig, select_experts
generator = torch.Generator().manual_seed(0)
answers = []
for groups, kept, experts, topk, apply in (
    (8, 4, 256, 8, False), (1, 1, 384, 8, True), (1, 1, 128, 6, False), (4, 2, 16, 4, True),
):
    logits = torch.randn(9, experts, generator=generator)
    bias = torch.randn(experts, generator=generator) / 10
    config = TopKConfig(
        top_k=topk, use_grouped_topk=True, num_expert_group=groups, topk_group=kept,
        renormalize=True, correction_bias=bias, routed_scaling_factor=2.5,
        apply_routed_scaling_factor_on_output=apply,
    )
    output = select_experts(torch.randn(9, 32), logits, config)
    from sglang_moe_ext.ops.compare import find_mismatch
    from sglang_moe_ext.ops.spec import RouterSpec
    spec = RouterSpec(experts, topk, groups, kept, 0, True, 2.5, apply)
    answers.append(find_mismatch(output.topk_weights, output.topk_ids, logits, bias, spec))
from sglang_moe_ext import ledger
print(json.dumps({
    "mismatches": answers,
    "routed": [(d.shape, d.backend, d.calls) for d in ledger.decisions],
}))
"""

GATE = """
import json, types, torch
from sglang.srt.plugins import load_plugins
load_plugins()
from sglang.srt.models.deepseek_v2 import MoEGate
def config(method):
    return types.SimpleNamespace(n_routed_experts=16, hidden_size=32, topk_method=method,
                                 architectures=["DeepseekV3ForCausalLM"], model_type="deepseek_v3")
torch.set_default_dtype(torch.bfloat16)
gate, plain = MoEGate(config("noaux_tc"), None, prefix="gate"), MoEGate(config("greedy"), None)
vision = MoEGate(config("noaux_tc"), None, vl_correction_bias=True)
hashed = MoEGate(config("noaux_tc"), None, is_hash_moe=True)
torch.nn.init.normal_(gate.weight)
hidden = torch.randn(5, 32)
exact = hidden.double() @ gate.weight.double().T
calls = [gate(hidden), gate(hidden, None), gate(hidden, gemm_output_zero_allocator=None),
         gate(hidden, forward_batch=None), gate(hidden[:0])]
print(json.dumps({
    "class": MoEGate.__name__,
    "parameters": {n: [str(p.dtype), list(p.shape)] for n, p in gate.named_parameters()},
    "bias_trains": gate.e_score_correction_bias.requires_grad,
    "without_bias": [n for n, _ in plain.named_parameters()],
    "plain_bias": plain.e_score_correction_bias,
    "hashed_bias": hashed.e_score_correction_bias,
    "vision": sorted(n for n, _ in vision.named_parameters()),
    "attributes": [hasattr(gate, name) for name in (
        "e_score_correction_bias_vl", "is_deepseek_v4", "rocm_router_max_tokens")],
    "logits": [[str(c.dtype), list(c.shape)] for c in calls],
    "same": all(torch.equal(calls[0], c) for c in calls[1:4]),
    "error": (calls[0].double() - exact).abs().max().item(),
}))
"""

# The worker has imported the router by the time it loads plugins, the launcher hasn't.
IMPORT_COST = """
import json, sys, time
import sglang.srt.plugins as plugins
if WORKER:
    import sglang.srt.managers.scheduler
sys.argv = ["launch_server"]
started = time.perf_counter()
plugins.load_plugins()
print(json.dumps({
    "seconds": time.perf_counter() - started,
    "imported": [m for m in ("sglang.srt.layers.moe.topk", "sglang.srt.models.deepseek_v2")
                 if m in sys.modules],
}))
"""


def run(code: str, **environment: str) -> dict[str, Any]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("SGLANG_", "PLAIN_CPU"))}
    process = subprocess.run(
        [sys.executable, "-c", code],
        env={**clean, "SGLANG_MOE_EXT_STRICT": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr[-4000:]
    report: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return report


def test_select_experts_goes_through_us() -> None:
    report = run(SELECT_EXPERTS)
    assert report["mismatches"] == [None] * 4
    shapes = [shape for shape, _, calls in report["routed"] if calls == 1]
    assert shapes == ["256/8 g8 tg4", "384/8", "128/6", "16/4 g4 tg2"]
    assert all(backend != "upstream" for _, backend, _ in report["routed"])


def test_switched_off_select_experts_does_not() -> None:
    assert run(SELECT_EXPERTS, SGLANG_MOE_EXT="0")["routed"] == []


def test_the_gate_keeps_its_contract() -> None:
    report = run(GATE)
    assert report["class"] == "DeepseekV2MoeGate"
    assert report["parameters"] == {
        "weight": ["torch.bfloat16", [16, 32]],
        "e_score_correction_bias": ["torch.float32", [16]],
    }
    assert report["bias_trains"] is False
    assert report["without_bias"] == ["weight"]
    assert report["plain_bias"] is None
    assert report["hashed_bias"] is None
    assert report["vision"] == ["e_score_correction_bias", "e_score_correction_bias_vl", "weight"]
    assert all(report["attributes"])
    assert report["logits"] == [["torch.float32", [5, 16]]] * 4 + [["torch.float32", [0, 16]]]
    assert report["same"]
    assert report["error"] < 1e-5


@pytest.mark.parametrize("process", ["launcher", "worker"])
def test_what_loading_costs(process: str) -> None:
    """Half a second at most over switching us off; no model code is imported for us."""
    code = IMPORT_COST.replace("WORKER", str(process == "worker"))
    off = min((run(code, SGLANG_MOE_EXT="0") for _ in range(2)), key=lambda r: r["seconds"])
    on = min((run(code) for _ in range(2)), key=lambda r: r["seconds"])
    cost = on["seconds"] - off["seconds"]
    print(f"\nloading the plugin costs the {process} {cost * 1e3:.0f} ms")
    assert on["imported"] == off["imported"]
    assert "sglang.srt.models.deepseek_v2" not in on["imported"]
    assert cost <= 0.5


# What must not be needed to import anything but the operation, its shims and the tools that
# say what they need.
HEAVY = ("torch", "sglang", "triton", "numba", "sgl_kernel", "numpy", "safetensors")
NEEDS_MORE = re.compile(
    r"sglang_moe_ext\.(ops|router|gate|loading|origin|parameters|checkpoint"
    r"|doctor\.router_checks|bench\.(context|judge|measure|plain|timing))\b"
)


def test_the_package_imports_without_torch_and_sglang() -> None:
    code = f"""
import importlib.abc, json, pkgutil, sys
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {HEAVY!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
import sglang_moe_ext
names = [m.name for m in pkgutil.walk_packages(sglang_moe_ext.__path__, "sglang_moe_ext.",
                                               onerror=lambda name: None)]
failed = []
for name in names:
    try:
        if not name.endswith("__main__"):
            __import__(name)
    except ModuleNotFoundError as error:
        failed.append((name, error.name))
print(json.dumps({{"names": names, "failed": failed}}))
"""
    report = run(code)
    assert [name for name, _ in report["failed"] if not NEEDS_MORE.match(name)] == []
    assert len(report["names"]) > len(report["failed"])


def test_the_installed_package_depends_on_neither() -> None:
    from importlib.metadata import requires

    always = [r for r in requires("sglang-moe-ext") or [] if "extra ==" not in r]
    assert [re.split(r"[<>=~ ]", r)[0] for r in always] == ["wrapt"]


if __name__ == "__main__":
    run_file(__file__)
