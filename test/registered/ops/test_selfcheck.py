"""The self-check catches what kernels do wrong, spares the right ones, and costs under 50 ms."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from sim_xpu import is_simulated, sim_environment

from sglang_moe_ext.ci import register_cpu_ci, run_file
from sglang_moe_ext.doctor.router_checks import MODEL_SHAPES
from sglang_moe_ext.ops import biased_grouped_topk, choose, dispatch, selfcheck, torch_router
from sglang_moe_ext.ops.backend import Run
from sglang_moe_ext.ops.spec import RouterSpec

register_cpu_ci(est_time=10, suite="base-a-test-cpu")

CPU = torch.device("cpu")
SHAPES = {name: RouterSpec(*shape) for name, shape in MODEL_SHAPES.items()}
VARIANTS = {
    **SHAPES,
    "two shared slots": RouterSpec(72, 6, 9, 4, 2, True, 2.5),
    "scaled here, not renormalised": RouterSpec(64, 6, 8, 4, 0, False, 2.5, True),
    "bfloat16": RouterSpec(256, 8, 8, 4, 0, logits_dtype=torch.bfloat16, bias_dtype=torch.bfloat16),
    "a bias per token": RouterSpec(60, 4, per_token_bias=True),
    "one expert": RouterSpec(1, 1),
    "groups of one expert": RouterSpec(8, 4, 8, 4),
}
LIMIT_MS = 50


Answer = tuple[Tensor, Tensor]
Allocate = Callable[[tuple[int, int], torch.dtype], Tensor]
ALLOCATORS: dict[str, Allocate] = {
    "torch.empty": lambda size, dtype: torch.empty(size, dtype=dtype),
    "torch.empty_strided": lambda size, dtype: torch.empty_strided(size, (size[1], 1), dtype=dtype),
    "torch.empty_like": lambda size, dtype: torch.empty_like(torch.zeros(size, dtype=dtype)),
    "Tensor.new_empty": lambda size, dtype: torch.zeros(1).new_empty(size, dtype=dtype),
}


@pytest.mark.parametrize("spec", VARIANTS.values(), ids=VARIANTS)
def test_a_right_backend_passes(spec: RouterSpec) -> None:
    for name in choose.candidates("cpu"):
        run = choose._load(name).prepare(spec).run
        assert selfcheck.find_failure(run, spec, CPU) is None, name


def broken(spec: RouterSpec, written: Callable[[int], int], allocate: Allocate) -> Run:
    """Right, but of T rows only the first written(T) are written."""

    def run(logits: Tensor, bias: Tensor) -> Answer:
        answer = torch_router.torch_topk(logits, bias, spec)
        outputs = tuple(allocate(tuple(each.shape), each.dtype) for each in answer)
        rows = written(len(logits))
        for output, each in zip(outputs, answer, strict=True):
            output[:rows] = each[:rows]
        return outputs[0], outputs[1]

    return run


@pytest.mark.parametrize("allocate", ALLOCATORS.values(), ids=ALLOCATORS)
@pytest.mark.parametrize(
    ("written", "case"),
    [
        pytest.param(lambda rows: 0, "all experts tied", id="writes nothing"),
        pytest.param(lambda rows: rows // 2, "all experts tied", id="writes half"),
        pytest.param(lambda rows: max(1, rows - 1), "four levels", id="skips the last row"),
        pytest.param(lambda rows: rows // 4 * 4 or 1, "four levels", id="writes whole tiles"),
        pytest.param(lambda rows: min(rows, 1408), "1409 rows", id="stops after 1408 rows"),
    ],
)
def test_unwritten_rows_are_caught(
    written: Callable[[int], int], case: str, allocate: Allocate
) -> None:
    """Also if the memory held the right answer a moment ago, as it does after a warm-up."""
    spec = RouterSpec(256, 8, 8, 4)
    run = broken(spec, written, allocate)
    for _ in range(2):
        failure = selfcheck.find_failure(run, spec, CPU)
        assert failure is not None
        assert case in failure
        assert "nan" in failure or "-77" in failure
        assert "expected" in failure


def out_of_range(logits: Tensor, weights: Tensor, ids: Tensor) -> None:
    ids[-1, -1] = logits.shape[1]


def negative(logits: Tensor, weights: Tensor, ids: Tensor) -> None:
    ids[-1, 0] = -1


def repeated(logits: Tensor, weights: Tensor, ids: Tensor) -> None:
    ids[:, -1] = ids[:, 0]


def garbage(logits: Tensor, weights: Tensor, ids: Tensor) -> None:
    weights.uniform_()
    ids.random_(0, logits.shape[1])


def infinite_weight(logits: Tensor, weights: Tensor, ids: Tensor) -> None:
    weights[0, 0] = torch.inf


def last_rows_repeat_the_first(logits: Tensor, weights: Tensor, ids: Tensor) -> None:
    weights[1024:], ids[1024:] = weights[:1].clone(), ids[:1].clone()


@pytest.mark.parametrize(
    "damage",
    [out_of_range, negative, repeated, garbage, infinite_weight, last_rows_repeat_the_first],
)
def test_wrong_answers_are_caught(damage: Callable[[Tensor, Tensor, Tensor], None]) -> None:
    spec = RouterSpec(256, 8)

    def run(logits: Tensor, bias: Tensor) -> Answer:
        weights, ids = torch_router.torch_topk(logits, bias, spec)
        damage(logits, weights, ids)
        return weights, ids

    failure = selfcheck.find_failure(run, spec, CPU)
    assert failure is not None
    assert "expected" in failure


def key_minus_bias(x: Tensor, bias: Tensor, spec: RouterSpec) -> Answer:
    _, ids = torch_router.torch_topk(x, bias, spec)
    chosen = ids.long()
    key = (x.sigmoid() + bias).gather(1, chosen)
    score = key - bias.expand_as(x).gather(1, chosen)
    return score / score.sum(dim=1, keepdim=True), ids


def scores_divided_by_their_sum(x: Tensor, bias: Tensor, spec: RouterSpec) -> Answer:
    _, ids = torch_router.torch_topk(x, bias, spec)
    score = x.sigmoid().gather(1, ids.long())
    return score / score.sum(dim=1, keepdim=True), ids


def dropped_groups_masked_with_zero(x: Tensor, bias: Tensor, spec: RouterSpec) -> Answer:
    kept = torch_router._kept_groups((x.sigmoid() + bias).view(len(x), 8, -1), spec)
    masked = torch.where(kept.repeat_interleave(32, dim=1), x.sigmoid() + bias, 0)
    ids = torch_router._pack(masked).topk(spec.topk, dim=1).indices
    score = x.double().sigmoid().gather(1, ids)
    return (score / score.sum(dim=1, keepdim=True)).float(), ids.int()


def one_row_without_its_bias(x: Tensor, bias: Tensor, spec: RouterSpec) -> Answer:
    return torch_router.torch_topk(x, bias if len(x) > 1 else torch.zeros_like(bias), spec)


def higher_id_first_in_a_batch(x: Tensor, bias: Tensor, spec: RouterSpec) -> Answer:
    weights, ids = torch_router.torch_topk(x.flip(1), bias.flip(0), spec)
    flipped = (weights, x.shape[1] - 1 - ids)
    return flipped if len(x) > 1 else torch_router.torch_topk(x, bias, spec)


def no_expert_where_none_is_best(x: Tensor, bias: Tensor, spec: RouterSpec) -> Answer:
    weights, ids = torch_router.torch_topk(x, bias, spec)
    key = x.sigmoid() + bias
    return weights, torch.where((key == key[:, :1]).all(dim=1, keepdim=True), 0, ids)


@pytest.mark.parametrize(
    ("route", "batch"),
    [
        (no_expert_where_none_is_best, "all experts tied"),
        (higher_id_first_in_a_batch, "ties among four levels"),
        (one_row_without_its_bias, "a single row"),
        (key_minus_bias, "a bias offset by 8"),
        (scores_divided_by_their_sum, "scores that underflow"),
        (dropped_groups_masked_with_zero, "a negative bias"),
    ],
)
def test_each_batch_finds_what_the_others_miss(
    route: Callable[[Tensor, Tensor, RouterSpec], Answer], batch: str
) -> None:
    spec = RouterSpec(256, 8, 8, 4)
    failure = selfcheck.find_failure(lambda x, bias: route(x, bias, spec), spec, CPU)
    assert failure is not None
    assert failure.startswith(f"{batch}:")


def drop_rows(weights: Tensor, ids: Tensor) -> Answer:
    return weights[:5], ids[:5]


def wide_ids(weights: Tensor, ids: Tensor) -> Answer:
    return weights, ids.long()


@pytest.mark.parametrize("change", [drop_rows, wide_ids])
def test_wrong_shapes_and_types_are_caught(change: Callable[[Tensor, Tensor], Answer]) -> None:
    spec = RouterSpec(64, 4)
    failure = selfcheck.find_failure(
        lambda logits, bias: change(*torch_router.torch_topk(logits, bias, spec)), spec, CPU
    )
    assert failure is not None
    assert "expected" in failure


def test_threads_and_allocation_are_as_before() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        spec = RouterSpec(64, 4)
        run = broken(spec, lambda rows: 0, ALLOCATORS["torch.empty"])
        selfcheck.find_failure(run, spec, CPU)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert len(torch.overrides._get_current_function_mode_stack()) == 0


def cost_ms(backend: str, spec: RouterSpec) -> float:
    """Of one thread's time, so that what else the machine does is not counted; least of three."""
    run = choose._load(backend).prepare(spec).run
    costs = []
    for _ in range(3):
        started = time.process_time()
        assert selfcheck.find_failure(run, spec, torch.device(spec.device_type)) is None
        costs.append((time.process_time() - started) * 1e3)
    return min(costs)


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("spec", SHAPES.values(), ids=SHAPES)
def test_cost(spec: RouterSpec, backend: str) -> None:
    cost = cost_ms(backend, spec)
    print(f"{backend} {spec}: {cost:.1f} ms")
    assert cost < LIMIT_MS


@pytest.mark.skipif(not shutil.which("c++"), reason="the simulated XPU needs a C++ compiler (c++)")
def test_cost_on_the_simulated_xpu() -> None:
    """Simulated: what the reference and the batches cost, not what an Intel GPU would take."""
    process = subprocess.run(
        [sys.executable, __file__], env=sim_environment(), capture_output=True, text=True
    )
    print(process.stdout)
    assert process.returncode == 0, process.stderr[-3000:]
    costs = [float(line.split()[-2]) for line in process.stdout.splitlines()]
    assert costs
    assert max(costs) < LIMIT_MS


def print_xpu_costs() -> None:
    for shape in MODEL_SHAPES.values():
        spec = RouterSpec(*shape, device_type="xpu")
        if choose._load("xpu").supports(spec) is None:
            print(f"xpu {spec}: {cost_ms('xpu', spec):.1f} ms")


def test_the_trace_shows_it() -> None:
    dispatch.reset()
    biased_grouped_topk(torch.zeros(3, 128), torch.zeros(128), 6, True)
    (decision,) = choose.ledger.decisions
    assert decision.selfcheck_ms is not None
    assert decision.selfcheck_ms > 0
    dispatch.reset()


if __name__ == "__main__":
    if is_simulated():
        print_xpu_costs()
    else:
        run_file(__file__)
