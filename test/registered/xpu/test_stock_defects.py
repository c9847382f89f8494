"""Defects of SGLang's own XPU router, on the simulated device, and our answer to each.

Run against the installed SGLang (0.5.23). Simulated: that the real kernels behave so is
read from their source.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from sim_xpu.run_cases import run_cases

from sglang_moe_ext.ci import register_cpu_ci, run_file

register_cpu_ci(est_time=20, suite="base-a-test-cpu")


@pytest.mark.skipif(not find_spec("sglang"), reason="SGLang is not installed")
def test_stock_router() -> None:
    run_cases("stock_cases.py")


if __name__ == "__main__":
    run_file(__file__)
