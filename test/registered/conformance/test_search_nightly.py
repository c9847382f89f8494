"""200,000 random calls, others every night; the seed is printed and repeats them:

SEARCH_SEED=<seed> python test/registered/conformance/test_search_nightly.py
"""

from __future__ import annotations

import os
import secrets
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from sim_xpu import sim_environment

from sglang_moe_ext.ci import register_cpu_ci, run_file

pytest.importorskip("hypothesis")
from test_support import search

register_cpu_ci(est_time=1500, suite="base-a-test-cpu", nightly=True)

PLANS = [
    search.Plan(("reference", "torch", "cpu"), 168_000, os.environ),
    search.Plan(("xpu",), 30_000, sim_environment()),
    search.Plan(("triton",), 2_000, {**os.environ, "TRITON_INTERPRET": "1"}, piece=100),
]
TIMEOUT_S = 4 * 3600


@pytest.mark.timeout(TIMEOUT_S + 60)
@pytest.mark.skipif(not shutil.which("c++"), reason="the simulated XPU needs a C++ compiler (c++)")
def test_no_example_is_routed_wrongly(capsys: pytest.CaptureFixture[str]) -> None:
    seed = int(os.environ.get("SEARCH_SEED") or secrets.randbelow(2**31))
    with capsys.disabled():
        print(f"\nSEARCH_SEED={seed}", flush=True)
        results = search.run_all(PLANS, seed, TIMEOUT_S, os.cpu_count() or 1)
        print(search.summary(PLANS, results, seed))
    assert [result.mismatch for result in results] == [None] * len(PLANS)
    assert sum(result.tried for result in results) == 200_000


if __name__ == "__main__":
    run_file(__file__)
