"""Every fault in every process of a real server: the tokens of a healthy one, or a refusal.

    FAULTS_JSON=benchmarks/faults.json python -m pytest test/registered/faults

keeps what was served and said, which scripts/faults_table.py puts into the README.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from plain_cpu.serving import READY_TIMEOUT_S
from test_support.fault_results import remember
from test_support.fault_server import NEW_TOKENS, Outcome, serve
from test_support.faults import FAULTS

from sglang_moe_ext.ci import register_cpu_ci, run_file

register_cpu_ci(est_time=750, suite="base-a-test-cpu", nightly=True)

pytestmark = pytest.mark.server

ROOT = Path(__file__).parents[3]
# One of each way to refuse; the others differ in nothing that a server adds.
STRICT = ("dependency-missing", "register-midway", "replacement-midway", "kernel-garbage")
SHORT = 12  # tokens of each answer; a fault that comes late needs them all


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "checkpoint"
    subprocess.run([sys.executable, ROOT / "scripts" / "make_checkpoint.py", path], check=True)
    return path


@pytest.fixture(scope="module")
def healthy(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    outcome = serve(model, tmp_path_factory.mktemp("healthy"), strict=True)
    assert (outcome.served_by, outcome.said) == (["cpu"], [])
    return outcome


def once(said: list[str]) -> bool:
    """Every line of ours; SGLang's own about a plugin comes from each of its processes."""
    return all(n == 1 for line, n in Counter(said).items() if line.startswith("sglang-moe-ext"))


@pytest.mark.parametrize("name", FAULTS)
def test_served(model: Path, healthy: Outcome, tmp_path: Path, name: str) -> None:
    fault = FAULTS[name]
    tokens = NEW_TOKENS if name == "kernel-raises-late" else SHORT
    outcome = serve(model, tmp_path, name, new_tokens=tokens)
    right = sum(f == h[:tokens] for f, h in zip(outcome.tokens, healthy.tokens, strict=True))
    served_by = ", then ".join(outcome.served_by) or "untraced"
    answers = f"{right} of {len(healthy.tokens)} answers right"
    remember(fault.what, f"{served_by}: {answers}", outcome.said)
    assert outcome.ended == ""
    assert right == len(healthy.tokens)
    if name == "trace-disk-full":
        assert outcome.served_by == []
    else:
        assert outcome.served_by[-1] == fault.served_by
    assert once(outcome.said), outcome.said
    found = [line for line in outcome.said if fault.said and re.search(fault.said, line)]
    assert bool(found) == (fault.said is not None), outcome.said


@pytest.mark.parametrize("name", STRICT)
def test_refused_under_strict(model: Path, tmp_path: Path, name: str) -> None:
    """The launcher ends by itself, whichever process refused; the log says why."""
    fault = FAULTS[name]
    outcome = serve(model, tmp_path, name, strict=True)
    remember(f"{fault.what}; strict", outcome.ended, outcome.said)
    assert outcome.ended.startswith("the server ended with exit code")
    assert outcome.seconds < READY_TIMEOUT_S
    assert re.search(fault.said or "", "\n".join(outcome.said))


if __name__ == "__main__":
    run_file(__file__)
