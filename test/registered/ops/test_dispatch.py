"""The public operation: what it refuses, whom it picks, and what happens when one breaks."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from sglang_moe_ext import env, ledger
from sglang_moe_ext.ci import register_cpu_ci, run_file
from sglang_moe_ext.ops import biased_grouped_topk, choose, dispatch, torch_router
from sglang_moe_ext.ops.backend import Prepared, Run
from sglang_moe_ext.ops.choose import BackendError
from sglang_moe_ext.ops.spec import RouterSpec

register_cpu_ci(est_time=10, suite="base-a-test-cpu")

T, E = 4, 64
GOOD: dict[str, Any] = {
    "gating_output": torch.zeros(T, E),
    "correction_bias": torch.zeros(E),
    "topk": 4,
    "renormalize": True,
    "num_expert_group": 4,
    "topk_group": 2,
    "num_fused_shared_experts": 0,
    "routed_scaling_factor": 2.5,
    "apply_routed_scaling_factor_on_output": False,
}


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for variable in env.VARIABLES:
        monkeypatch.delenv(variable.name, raising=False)
    env.settings.cache_clear()
    dispatch.reset()
    yield
    env.settings.cache_clear()
    dispatch.reset()


def install(monkeypatch: pytest.MonkeyPatch, run: Run, refusal: str | None = None) -> None:
    """Put a backend "broken" before all others on the CPU."""
    broken = SimpleNamespace(
        supports=lambda spec: refusal, prepare=lambda spec: Prepared(run, "made for this test")
    )
    load = choose._load
    monkeypatch.setattr(choose, "_load", lambda n: broken if n == "broken" else load(n))
    monkeypatch.setattr(choose, "candidates", lambda device: ("broken", "torch", "reference"))


def right(logits: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return torch_router.torch_topk(logits, bias, RouterSpec(E, 4, 4, 2, 0, True, 2.5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_expert_group": 7}, "num_expert_group is 7, expected a divisor of the 64 experts"),
        ({"num_expert_group": -4}, "num_expert_group is -4, expected a divisor"),
        ({"topk": 33}, "topk is 33 .* expected 1..32"),
        ({"topk": 0}, "topk is 0 .* expected 1..32"),
        ({"topk": 2.0}, r"topk is 2.0, expected an int"),
        ({"topk_group": 5}, "topk_group is 5, expected 1..4"),
        ({"topk_group": None}, "topk_group is 0, expected 1..4"),
        ({"num_fused_shared_experts": 4}, "num_fused_shared_experts is 4, expected 0..3"),
        ({"num_fused_shared_experts": -1}, "num_fused_shared_experts is -1, expected 0..3"),
        ({"correction_bias": torch.zeros(E - 1)}, "correction_bias has 1 dim.* 63, expected"),
        ({"correction_bias": torch.zeros(1)}, "correction_bias has 1 dim.* 1, expected"),
        ({"correction_bias": torch.tensor(0.0)}, "correction_bias has 0 dim"),
        ({"correction_bias": torch.zeros(T + 1, E)}, r"correction_bias has shape \(5, 64\)"),
        ({"correction_bias": torch.zeros(1, T, E)}, "correction_bias has 3 dim.* 64, expected"),
        ({"correction_bias": torch.zeros(T * E)}, "correction_bias has 1 dim.* 256, expected"),
        ({"correction_bias": torch.zeros(E).long()}, "correction_bias is torch.int64, expected"),
        ({"correction_bias": torch.zeros(E).double()}, "correction_bias is torch.float64"),
        ({"correction_bias": torch.zeros(E, device="meta")}, "correction_bias is on meta"),
        ({"gating_output": torch.zeros(T, E).double()}, "gating_output is torch.float64"),
        ({"gating_output": torch.zeros(E)}, r"gating_output has shape \(64,\), expected"),
        ({"gating_output": torch.zeros(T, 0), "correction_bias": torch.zeros(0)}, "0 experts"),
        ({"routed_scaling_factor": float("nan")}, "routed_scaling_factor is nan"),
        (
            {"routed_scaling_factor": 0.0, "num_fused_shared_experts": 1},
            "routed_scaling_factor is 0 and is applied later",
        ),
    ],
    ids=str,
)
def test_bad_arguments_are_named(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], message: str
) -> None:
    """Each error says what was found and expected, and nothing was launched."""

    def launched(logits: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        raise AssertionError("a backend ran")

    monkeypatch.setattr(torch_router, "torch_topk", launched)
    monkeypatch.setenv("SGLANG_MOE_EXT_SELFCHECK", "0")
    with pytest.raises(ValueError, match=message):
        biased_grouped_topk(**{**GOOD, **change})


def test_an_empty_batch_launches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def counted(logits: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        calls.append(logits.shape[0])
        return right(logits, bias)

    install(monkeypatch, counted)
    biased_grouped_topk(**GOOD)
    calls.clear()
    weights, ids = biased_grouped_topk(**{**GOOD, "gating_output": torch.zeros(0, E)})
    assert weights.shape == ids.shape == (0, 4)
    assert (weights.dtype, ids.dtype) == (torch.float32, torch.int32)
    assert calls == []


@pytest.mark.parametrize("backend", ["reference", "torch", "cpu"])
def test_any_strides(backend: str) -> None:
    generator = torch.Generator().manual_seed(0)
    logits, bias = (torch.randn(E, T, generator=generator) for _ in range(2))
    for x, b in ((logits.t(), bias[:, 0]), (logits.t(), bias.t()), (logits.t()[:1], bias.t()[:1])):
        call = {**GOOD, "gating_output": x, "correction_bias": b, "backend": backend}
        weights, ids = biased_grouped_topk(**call)
        call |= {"gating_output": x.contiguous(), "correction_bias": b.contiguous()}
        expected = biased_grouped_topk(**call)
        assert torch.equal(ids, expected[1])
        assert torch.equal(weights, expected[0])


def test_no_factor_is_a_factor_of_one() -> None:
    call = {**GOOD, "apply_routed_scaling_factor_on_output": True}
    weights, _ = biased_grouped_topk(**{**call, "routed_scaling_factor": None})
    assert weights.sum(dim=1).tolist() == [1.0] * T


def test_one_decision_whatever_the_batch_size() -> None:
    for rows in (1, 2, 3, 100):
        biased_grouped_topk(**{**GOOD, "gating_output": torch.zeros(rows, E)})
    (decision,) = ledger.decisions
    assert (decision.calls, decision.tokens) == (4, 106)
    assert decision.shape == "64/4 g4 tg2"


def test_a_refusal_is_a_reason_and_the_next_backend_serves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install(monkeypatch, right, refusal="only on Tuesdays")
    biased_grouped_topk(**GOOD)
    assert ledger.decisions[0].backend == "torch"
    assert ledger.decisions[0].rejected == (("broken", "only on Tuesdays"),)


def test_a_missing_module_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    modules = {**choose.MODULES, "absent": "sglang_moe_ext.ops.absent"}
    monkeypatch.setattr(choose, "MODULES", modules)
    monkeypatch.setattr(choose, "candidates", lambda device: ("absent", "reference"))
    biased_grouped_topk(**GOOD)
    (name, why), *_ = ledger.decisions[0].rejected
    assert name == "absent"
    assert "No module named" in why


def one_row_unwritten(logits: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    weights, ids = right(logits, bias)
    weights[-1], ids[-1] = float("nan"), -777
    return weights, ids


def wrong_tie(logits: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    weights, ids = right(logits, bias.flip(0))
    return weights, (E - 1 - ids).int()


def raising(logits: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    raise RuntimeError("no kernel image")


@pytest.mark.parametrize("run", [one_row_unwritten, wrong_tie, raising])
def test_the_self_check_disqualifies(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, run: Run
) -> None:
    install(monkeypatch, run)
    with caplog.at_level(logging.ERROR):
        _, ids = biased_grouped_topk(**GOOD)
        biased_grouped_topk(**GOOD)
    assert ids.tolist() == [[0, 1, 2, 3]] * T
    assert ledger.decisions[-1].backend == "torch"
    (name, why), *_ = ledger.decisions[-1].rejected
    assert name == "broken"
    assert why.startswith("self-check")
    assert len(caplog.records) == 1


def test_the_self_check_ends_the_process_under_strict(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, wrong_tie)
    monkeypatch.setenv("SGLANG_MOE_EXT_STRICT", "1")
    with pytest.raises(SystemExit, match="failed its self-check for 64/4 g4 tg2"):
        biased_grouped_topk(**GOOD)


def test_a_backend_that_breaks_later_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The call that hit the error is answered too, and the error is logged once."""
    healthy = [True]

    def breaks(logits: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        if not healthy[0]:
            raise RuntimeError("device lost")
        return right(logits, bias)

    install(monkeypatch, breaks)
    biased_grouped_topk(**GOOD)
    assert ledger.decisions[-1].backend == "broken"
    healthy[0] = False
    with caplog.at_level(logging.ERROR):
        _, ids = biased_grouped_topk(**GOOD)
        biased_grouped_topk(**GOOD)
    assert ids.tolist() == [[0, 1, 2, 3]] * T
    assert ledger.decisions[-1].backend == "torch"
    assert ledger.decisions[-1].rejected == (("broken", "raised RuntimeError: device lost"),)
    assert len(caplog.records) == 1


def test_a_forced_backend_raises_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_router, "supports", lambda spec: "not today")
    with pytest.raises(BackendError, match=r"'torch' was forced .* route 64/4.*not today"):
        biased_grouped_topk(**GOOD, backend="torch")
    monkeypatch.setenv("SGLANG_MOE_EXT_BACKEND", "torch")
    env.settings.cache_clear()
    with pytest.raises(BackendError, match="not today"):
        biased_grouped_topk(**GOOD)


def test_an_unknown_backend_is_named() -> None:
    with pytest.raises(ValueError, match="backend is 'fast', expected one of reference, torch"):
        biased_grouped_topk(**GOOD, backend="fast")


def test_no_self_check_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """It compares on the CPU, and a capture can't wait for an answer."""
    assert choose._is_checked("triton")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert not choose._is_checked("triton")


def test_triton_on_a_cpu_is_refused_without_its_interpreter() -> None:
    with pytest.raises(BackendError, match="no Triton for cpu tensors"):
        biased_grouped_topk(**GOOD, backend="triton")


def test_every_backend_failing_raises_the_last_error(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, right)
    biased_grouped_topk(**GOOD)
    monkeypatch.setattr(choose, "candidates", lambda device: ("broken",))
    (plan,) = dispatch._plans.values()
    plan.run = raising
    with pytest.raises(RuntimeError, match="no kernel image"):
        biased_grouped_topk(**GOOD)


def test_torch_compile_sees_one_node() -> None:
    """fullgraph: no break, no recompilation per batch size, and the calls still counted."""

    def layer(logits: Tensor) -> Tensor:
        weights, ids = biased_grouped_topk(**{**GOOD, "gating_output": logits})
        return weights * ids

    compiled = torch.compile(layer, fullgraph=True, backend="eager", dynamic=True)
    for rows in (3, 5, 8):
        logits = torch.randn(rows, E, generator=torch.Generator().manual_seed(rows))
        assert torch.equal(compiled(logits), layer(logits))
    assert sum(decision.calls for decision in ledger.decisions) == 6


if __name__ == "__main__":
    run_file(__file__)
