"""numba's cache: begun by two servers at once, or full of rubbish; routing is right anyhow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from test_support.fault_results import remember
from test_support.fault_server import Outcome, serve

from sglang_moe_ext.ci import register_cpu_ci, run_file

register_cpu_ci(est_time=200, suite="base-a-test-cpu", nightly=True)

ROOT = Path(__file__).parents[3]
ROUTE = """
import json, torch
from sglang_moe_ext import ledger
from sglang_moe_ext.ops import biased_grouped_topk
generator = torch.Generator().manual_seed(0)
logits, bias = (torch.randn(*shape, generator=generator) for shape in ((9, 64), (64,)))
weights, ids = biased_grouped_topk(logits, bias, 8, True, 8, 4)
print(json.dumps([ledger.decisions[0].backend, ids.tolist(), ledger.decisions[0].rejected]))
"""


def route(cache: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache)}
    command = [sys.executable, "-c", ROUTE]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def answer(process: subprocess.Popen[str]) -> list[Any]:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    found: list[Any] = json.loads(output.splitlines()[-1])
    return found


def cached(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*.nb[ci]") if path.is_file()]


def test_rubbish_in_the_cache(tmp_path: Path) -> None:
    before = answer(route(tmp_path))
    assert before[0] == "cpu"
    files = cached(tmp_path)
    assert files
    for damage in (b"rubbish", b""):
        for path in files:
            path.write_bytes(damage)
        assert answer(route(tmp_path)) == before
    remember("numba's cache holds rubbish", "cpu: answers right", where="process")


def test_four_processes_at_once(tmp_path: Path) -> None:
    answers = [answer(process) for process in [route(tmp_path) for _ in range(4)]]
    assert [each[0] for each in answers] == ["cpu"] * 4
    assert all(each == answers[0] for each in answers)
    assert cached(tmp_path)


@pytest.mark.server
def test_two_servers_at_once(tmp_path: Path) -> None:
    model = tmp_path / "checkpoint"
    subprocess.run([sys.executable, ROOT / "scripts" / "make_checkpoint.py", model], check=True)
    cache = tmp_path / "numba"

    def start(number: int) -> Outcome:
        folder = tmp_path / str(number)
        environment = {"NUMBA_CACHE_DIR": str(cache)}
        return serve(model, folder, strict=True, new_tokens=12, environment=environment)

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(start, range(2))
    assert first.tokens
    assert first.tokens == second.tokens
    for outcome in (first, second):
        assert (outcome.served_by, outcome.said) == (["cpu"], [])
    assert cached(cache)
    remember("two servers start at once on one empty cache", "cpu, cpu: same answers")


if __name__ == "__main__":
    run_file(__file__)
