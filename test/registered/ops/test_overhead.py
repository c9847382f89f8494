"""What a call costs in Python beyond the backend: a few microseconds, whatever its size."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import torch

from sglang_moe_ext.ci import register_cpu_ci, run_file
from sglang_moe_ext.ops import dispatch
from sglang_moe_ext.router import make_router

register_cpu_ci(est_time=5, suite="base-a-test-cpu")

LIMIT_US = 5.0
CALLS, ROUNDS = 2000, 15


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    dispatch.reset()
    yield
    dispatch.reset()


def overhead_us(rows: int) -> float:
    """Fastest round of the whole override, its backend answering at once."""
    arguments = {
        "hidden_states": torch.zeros(rows, 8),
        "gating_output": torch.zeros(rows, 256),
        "correction_bias": torch.zeros(256),
        "topk": 8,
        "renormalize": True,
        "num_expert_group": 8,
        "topk_group": 4,
        "num_fused_shared_experts": 0,
        "routed_scaling_factor": 2.5,
        "apply_routed_scaling_factor_on_output": False,
    }

    def original(**kwargs: object) -> tuple[torch.Tensor, torch.Tensor]:
        raise AssertionError("the call was left to SGLang")

    route = make_router(original)
    answer = route(**arguments)
    (plan,) = dispatch._plans.values()
    plan.run = lambda logits, bias: answer
    rounds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        for _ in range(CALLS):
            route(**arguments)
        rounds.append(time.perf_counter() - started)
    return min(rounds) / CALLS * 1e6


@pytest.mark.parametrize("rows", [1, 4096], ids="T{}".format)
def test_overhead(rows: int) -> None:
    found = overhead_us(rows)
    print(f"\nT={rows}: {found:.2f} us per call")
    assert found <= LIMIT_US


if __name__ == "__main__":
    run_file(__file__)
