"""Processes with a fault in them that route through SGLang's own `select_experts`.

    python -m test_support.fault_probe kernel-garbage kernel-garbage:strict

One JSON line per fault. SGLang is imported once and each fault gets a fork of that process,
which then loads the plugins; servers, where every process starts anew, are in `fault_server`.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import sglang.srt.models.deepseek_v2
import sglang.srt.plugins
import torch
from sglang.srt.layers.moe.topk import TopKConfig, select_experts

from test_support.faults import FAULTS, LATE, STOCK

E, K, G, TG, T = 16, 4, 4, 2, 5
CALLS = LATE + 50


def main() -> None:
    for argument in sys.argv[1:]:
        name, _, strict = argument.partition(":")
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            outcome = run(name, bool(strict), Path(folder))
        seconds = round(time.monotonic() - started, 1)
        print(json.dumps({"case": argument, "seconds": seconds, **outcome}))


def run(name: str, strict: bool, folder: Path) -> dict[str, Any]:
    """What a process with the fault did: exit code, log, and the report if it came to one."""
    report, log = folder / "report", folder / "log"
    child = os.fork()
    if child == 0:
        _child(name, strict, folder / "trace", report, log)
    _, status = os.waitpid(child, 0)
    return {
        "code": os.waitstatus_to_exitcode(status),
        "log": log.read_text(encoding="utf-8"),
        **(json.loads(report.read_text(encoding="utf-8")) if report.exists() else {}),
    }


def _child(name: str, strict: bool, trace: Path, report: Path, log: Path) -> None:
    code = 3
    try:
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT), 2)
        logging.basicConfig(level=logging.INFO, stream=sys.stderr, force=True)
        os.environ["SGLANG_MOE_EXT_STRICT"] = str(int(strict))
        os.environ["SGLANG_MOE_EXT_TRACE"] = str(trace)
        os.environ.update(FAULTS[name].environment)
        FAULTS[name].inject()
        report.write_text(json.dumps(_load_and_route()), encoding="utf-8")
        code = 0
    except SystemExit as end:
        print(f"ends: {end}", file=sys.stderr)
        code = 1
    finally:
        sys.stderr.flush()
        os._exit(code)


def _load_and_route() -> dict[str, Any]:
    sglang.srt.plugins.load_plugins()
    from sglang_moe_ext import ledger, overrides
    from sglang_moe_ext.ops.reference import reference_topk
    from sglang_moe_ext.ops.spec import RouterSpec

    generator = torch.Generator().manual_seed(0)
    logits, bias = torch.randn(T, E, generator=generator), torch.randn(E, generator=generator)
    config = TopKConfig(
        top_k=K,
        use_grouped_topk=True,
        num_expert_group=G,
        topk_group=TG,
        renormalize=True,
        correction_bias=bias,
    )
    spec = RouterSpec(E, K, G, TG)
    right = _by_expert(*reference_topk(logits, bias, spec))
    wrong = 0
    for _ in range(CALLS):
        answer = select_experts(torch.zeros(T, 8), logits, config)
        found = _by_expert(answer.topk_weights, answer.topk_ids)
        wrong += not torch.allclose(found, right, rtol=1e-5, atol=0)
    routers = [d for d in ledger.decisions if d.what == "router" and d.calls]
    return {
        "wrong": wrong,
        "served_by": [d.backend for d in routers] or [STOCK],
        "calls": sum(d.calls for d in routers),
        "ours": [
            overrides.INSTALLED.reaches(t) for t in overrides.TARGETS if t.module in sys.modules
        ],
    }


def _by_expert(weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Weight of every expert [T, E]; stock SGLang leaves the order of a row open."""
    return torch.zeros(T, E).scatter_(1, ids.long(), weights)


if __name__ == "__main__":
    main()
