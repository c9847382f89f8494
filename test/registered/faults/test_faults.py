"""Every fault in a process of its own: answers stay right, or strict refuses; said once.

The processes route through SGLang's own `select_experts`; the same faults in real servers are
in `test_fault_servers.py`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import Any

import pytest
from test_support.faults import FAULTS, STOCK

from sglang_moe_ext.ci import register_cpu_ci, run_file

register_cpu_ci(est_time=35, suite="base-a-test-cpu")

Outcomes = dict[str, dict[str, Any]]
# All that strict refuses, and some that it has no quarrel with.
STRICT = [
    *(name for name, fault in FAULTS.items() if fault.refused),
    *("plugin-unimportable", "kernel-raises-late", "numba-missing", "trace-disk-full"),
]


@pytest.fixture(scope="module")
def outcomes() -> Outcomes:
    cases = [*FAULTS, *(f"{name}:strict" for name in STRICT)]
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("SGLANG_", "PLAIN_CPU"))}
    process = subprocess.run(
        [sys.executable, "-m", "test_support.fault_probe", *cases],
        # Stock SGLang compiles its router, which takes seconds in each process.
        env={**clean, "TORCHDYNAMO_DISABLE": "1"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert process.returncode == 0, process.stderr[-4000:]
    results = [json.loads(line) for line in process.stdout.splitlines()]
    return {result["case"]: result for result in results}


def ours(log: str) -> list[str]:
    """What the plugin itself said, without "is live"."""
    return [line for line in log.splitlines() if re.match(r"(ERROR|WARNING):sglang_moe_ext", line)]


@pytest.mark.parametrize("name", FAULTS)
def test_every_answer_is_right(outcomes: Outcomes, name: str) -> None:
    fault, outcome = FAULTS[name], outcomes[name]
    assert outcome["code"] == 0, outcome["log"]
    assert outcome["wrong"] == 0
    assert outcome["served_by"][-1] == fault.served_by, outcome["log"]
    live = fault.served_by != STOCK
    assert outcome["ours"] == [live] * len(outcome["ours"]), "half-patched"


@pytest.mark.parametrize("name", FAULTS)
def test_it_is_said_once(outcomes: Outcomes, name: str) -> None:
    said, log = FAULTS[name].said, outcomes[name]["log"]
    lines = ours(log)
    assert len(lines) == len(set(lines))
    if said is None:
        assert lines == []
    else:
        assert len(re.findall(said, log)) == 1, log


@pytest.mark.parametrize("name", STRICT)
def test_under_strict(outcomes: Outcomes, name: str) -> None:
    """Refused with the same reason, or served as without."""
    fault, outcome = FAULTS[name], outcomes[f"{name}:strict"]
    if not fault.refused:
        assert (outcome["code"], outcome["wrong"]) == (0, 0), outcome["log"]
        return
    assert outcome["code"] == 1, outcome["log"]
    (end,) = re.findall("ends: .*", outcome["log"])
    assert "sglang-moe-ext" in end


if __name__ == "__main__":
    run_file(__file__)
