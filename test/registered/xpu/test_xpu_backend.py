"""The `xpu` backend on the simulated XPU, for every set of kernel versions.

What upstream's test of these kernels leaves out: every size, flag and dtype, offset biases,
ties, bans, NaN, strides, and each version. Simulated: no Intel hardware takes part.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from sim_xpu import table
from sim_xpu.cases.shapes import INSTALLATIONS, SHAPES, expected_operation
from sim_xpu.run_cases import run_cases

from sglang_moe_ext.ci import register_cpu_ci, run_file

register_cpu_ci(est_time=42, suite="base-a-test-cpu")

CASES = ("backend_cases.py", "backend_value_cases.py")


@pytest.mark.parametrize("variant", INSTALLATIONS)
def test_strict(variant: str) -> None:
    run_cases(*CASES, variant=variant)


def test_faithful_with_inexact_arithmetic() -> None:
    run_cases(*CASES, mode="faithful", slack=True)


def test_table_of_models() -> None:
    rows = [line.strip("| ").split(" | ")[2:] for line in table.markdown().splitlines()[2:]]
    for shape, cells in zip(SHAPES, rows, strict=False):
        for installation, cell in zip(INSTALLATIONS, cells, strict=True):
            operation = expected_operation(shape, installation)
            assert cell == (f"`{operation}` exact" if operation else table.NOT_SERVED)


if __name__ == "__main__":
    run_file(__file__)
