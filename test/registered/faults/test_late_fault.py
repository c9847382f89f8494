"""A kernel that breaks in its thousandth call, in a real server: no answer changes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from plain_cpu.serving import Server
from test_support.fault_server import generate, said
from test_support.faults import FAULTS, fault_environment

from sglang_moe_ext import trace
from sglang_moe_ext.ci import register_cpu_ci, run_file

register_cpu_ci(est_time=50, suite="base-a-test-cpu", nightly=True)

pytestmark = pytest.mark.server

ROOT = Path(__file__).parents[3]
NAME = "kernel-raises-late"
PROMPTS = ([5, 6, 7, 8], list(range(40, 60)))
MOST_ROUNDS = 20


def test_the_next_backend_takes_over(tmp_path: Path) -> None:
    model, log = tmp_path / "checkpoint", tmp_path / "server.log"
    subprocess.run([sys.executable, ROOT / "scripts" / "make_checkpoint.py", model], check=True)
    variables = {
        **fault_environment(NAME),
        "SGLANG_MOE_EXT_TRACE": str(tmp_path / "trace"),
        "OMP_NUM_THREADS": "1",
    }
    arguments = ("--dtype", "float32")
    with Server(model, log, arguments=arguments, environment=variables) as server:
        healthy = [generate(server, prompt) for prompt in PROMPTS]
        assert said(log.read_text()) == [], "it broke too early for a comparison"
        for _ in range(MOST_ROUNDS):
            assert [generate(server, prompt) for prompt in PROMPTS] == healthy
            if said(log.read_text()):
                break
        assert [generate(server, prompt) for prompt in PROMPTS] == healthy
    (line,) = said(log.read_text())
    assert re.search(FAULTS[NAME].said or "", line)
    routers = [r for r in trace.read(tmp_path / "trace") if r["what"] == "router"]
    assert [r["backend"] for r in routers] == ["cpu", "torch"]
    assert routers[1]["rejected"] == [["cpu", "raised RuntimeError: device lost"]]


if __name__ == "__main__":
    run_file(__file__)
