"""The stand-in `sgl_kernel` against the specification of Intel's kernels, version by version.

It is the instrument that the other XPU tests measure with. Simulated: this says what the
stand-in does, and rests on reading the real kernels' source.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from sim_xpu.cases.shapes import INSTALLATIONS
from sim_xpu.run_cases import run_cases

from sglang_moe_ext.ci import register_cpu_ci, run_file

register_cpu_ci(est_time=35, suite="base-a-test-cpu")

CASES = ("stand_in_cases.py", "stand_in_sigmoid_cases.py", "stand_in_gate_cases.py")


@pytest.mark.parametrize("variant", INSTALLATIONS)
def test_strict(variant: str) -> None:
    run_cases(*CASES, variant=variant)


def test_faithful() -> None:
    run_cases(*CASES, mode="faithful")


if __name__ == "__main__":
    run_file(__file__)
