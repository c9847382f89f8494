"""Random calls against every backend that runs here: properties in test_support/properties.py.

The same examples at every run; test_search_nightly.py tries others every night.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from sim_xpu import sim_environment

from sglang_moe_ext.ci import register_cpu_ci, run_file
from sglang_moe_ext.ops import torch_router
from sglang_moe_ext.ops.backend import Prepared
from sglang_moe_ext.ops.spec import RouterSpec

pytest.importorskip("hypothesis")
from test_support import search

register_cpu_ci(est_time=23, suite="base-a-test-cpu")

SEED = 0
PLANS = [
    search.Plan(("torch", "cpu"), 2000, os.environ),
    search.Plan(("triton",), 30, {**os.environ, "TRITON_INTERPRET": "1"}),
]
if shutil.which("c++"):  # builds the simulated XPU
    PLANS.append(search.Plan(("xpu",), 300, sim_environment()))


def test_no_example_is_routed_wrongly(capsys: pytest.CaptureFixture[str]) -> None:
    results = search.run_all(PLANS, SEED, 500, os.cpu_count() or 1)
    with capsys.disabled():
        print("\n" + search.summary(PLANS, results, SEED))
    assert [result.mismatch for result in results] == [None] * len(PLANS)
    assert [result.tried for result in results] == [plan.count for plan in PLANS]


def swap_last(weights: Tensor, ids: Tensor) -> None:
    ids[:, -2:] = ids[:, -2:].flip(1)


def unwritten_row(weights: Tensor, ids: Tensor) -> None:
    weights[-1] = torch.nan


def second_row_depends_on_the_first(weights: Tensor, ids: Tensor) -> None:
    weights[1:] *= 1 + 2**-22 * (ids[0, 0] % 2)


def bias_in_the_weights(weights: Tensor, ids: Tensor) -> None:
    weights *= 1 + 1e-4


@pytest.mark.parametrize(
    "defect", [swap_last, unwritten_row, second_row_depends_on_the_first, bias_in_the_weights]
)
def test_a_defect_is_found(monkeypatch: pytest.MonkeyPatch, defect) -> None:
    """The search can say no."""

    def prepare(spec: RouterSpec) -> Prepared:
        def run(logits: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
            weights, ids = torch_router.torch_topk(logits, bias, spec)
            defect(weights, ids)
            return weights, ids

        return Prepared(run, "broken for this test")

    monkeypatch.setattr(torch_router, "prepare", prepare)
    result = search.search(("torch",), 200, SEED)
    assert result.mismatch is not None
    assert "Example(" in result.mismatch


if __name__ == "__main__":
    run_file(__file__)
