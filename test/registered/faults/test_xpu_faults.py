"""`sgl_kernel` and Triton broken on the simulated XPU: `torch` routes, and the reason is kept.

Real processes with SGLang's `select_experts` wherever SGLang itself can be imported; it
cannot without `sgl_kernel`, with or without us. Simulated: no Intel hardware takes part.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_support.fault_results import remember
from test_support.faults import XPU_FAULTS

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from sim_xpu import sim_environment

from sglang_moe_ext.ci import register_cpu_ci, run_file

register_cpu_ci(est_time=120, suite="base-a-test-cpu", nightly=True)

# Routes through the operation, and through SGLang where it can be imported.
ROUTE = """
import json, logging, sys
logging.basicConfig(level=logging.INFO, stream=sys.stderr)
from test_support.fault_results import remember
from test_support.faults import XPU_FAULTS
XPU_FAULTS[NAME].inject()
import torch
try:
    from sglang.srt.plugins import load_plugins
    load_plugins()
    from sglang.srt.layers.moe.topk import TopKConfig, select_experts
    unusable = None
except Exception as error:
    unusable = f"{type(error).__name__}: {error}"
from sglang_moe_ext import ledger
from sglang_moe_ext.ops import biased_grouped_topk
from sglang_moe_ext.ops.compare import find_mismatch
from sglang_moe_ext.ops.spec import RouterSpec
generator = torch.Generator().manual_seed(0)
mismatches = []
for E, K, G, TG in ((128, 6, 1, 1), (16, 4, 4, 2)):
    logits = torch.randn(9, E, generator=generator).to("xpu")
    bias = torch.randn(E, generator=generator).to("xpu")
    spec = RouterSpec(E, K, G, TG, device_type="xpu")
    answers = [biased_grouped_topk(logits, bias, K, True, G, TG) for _ in range(3)]
    if unusable is None:
        config = TopKConfig(top_k=K, use_grouped_topk=True, num_expert_group=G, topk_group=TG,
                            renormalize=True, correction_bias=bias)
        output = select_experts(torch.zeros(9, 8, device="xpu"), logits, config)
        answers.append((output.topk_weights, output.topk_ids))
    mismatches += [find_mismatch(*answer, logits, bias, spec) for answer in answers]
print(json.dumps({
    "unusable": unusable,
    "mismatches": [m for m in mismatches if m],
    "answers": len(mismatches),
    "routed": {d.shape: [d.backend, dict(d.rejected)] for d in ledger.decisions if d.calls},
}))
"""


def run(name: str, variant: str, plugin: bool = True) -> tuple[dict[str, Any], str]:
    environment = {
        **sim_environment(variant=variant),
        "SGLANG_MOE_EXT": str(int(plugin)),
        "SGLANG_PLUGINS": "moe_ext",
        "SGLANG_PLATFORM": "",
    }
    process = subprocess.run(
        [sys.executable, "-c", ROUTE.replace("NAME", repr(name))],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr[-4000:]
    report: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return report, process.stderr


@pytest.mark.parametrize("name", XPU_FAULTS)
def test_torch_serves(name: str) -> None:
    fault = XPU_FAULTS[name]
    report, log = run(name, fault.kernels)
    assert report["mismatches"] == []
    backend, rejected = report["routed"][fault.shape]
    assert backend == fault.served_by
    assert fault.reason in rejected[fault.backend]
    lines = re.findall(r"^ERROR:sglang_moe_ext\S*?:(.*)", log, re.MULTILINE)
    assert len(lines) == len(set(lines)) == fault.lines, log
    if fault.stock_fails:
        assert report["unusable"] == run(name, fault.kernels, plugin=False)[0]["unusable"]
        assert report["unusable"] is not None
    else:
        assert report["unusable"] is None
        assert report["answers"] == 8
    outcome = f"{backend}: answers right"
    if fault.stock_fails:
        outcome = f"SGLang cannot start, with or without us; our operation alone: {outcome}"
    remember(
        f"{fault.what} (simulated XPU)",
        outcome,
        lines or [rejected[fault.backend]],
        where="process",
    )


if __name__ == "__main__":
    run_file(__file__)
