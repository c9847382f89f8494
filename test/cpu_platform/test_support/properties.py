"""What must hold for every router call, whatever the numbers: checked on one example at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sglang_moe_ext.ops import biased_grouped_topk
from sglang_moe_ext.ops.compare import find_mismatch
from sglang_moe_ext.ops.spec import RouterSpec
from test_support.example_inputs import Example

Answer = tuple[Tensor, Tensor]
KEY_ULPS = 16  # what float32 may do to the gap of two keys before their order is in doubt


@dataclass(frozen=True)
class Call:
    """A call that was answered, and the means to make others like it.

    defined: (logits, bias, spec) -> mask [T] of rows whose answer the backend must agree on.
    bits: must weights be the same to the last bit? On the simulated XPU operations run on the
        CPU, where a vectorised exp and the scalar one of its tail differ.
    """

    route: Callable[[Tensor, Tensor], Answer]
    logits: Tensor
    bias: Tensor
    answer: Answer
    spec: RouterSpec
    seed: int
    defined: Callable[[Tensor, Tensor, RouterSpec], Tensor]
    bits: bool

    def bias_of(self, rows: Tensor) -> Tensor:
        return self.bias[rows] if self.bias.dim() == 2 else self.bias

    def must_be_same(self, found: Answer, expected: Answer, what: str) -> None:
        assert torch.equal(found[1], expected[1]), f"{what}: {found[1]}, expected {expected[1]}"
        a, b = found[0], expected[0]
        same = torch.equal(a, b) if self.bits else torch.allclose(a, b, rtol=1e-6, atol=1e-37)
        assert same, f"{what}: {a.tolist()}, expected {b.tolist()}"


def check(example: Example, backend: str, device: str = "cpu") -> None:
    """Raises AssertionError with what is wrong."""
    logits, bias = example.tensors()
    spec = example.spec()

    def route(logits: Tensor, bias: Tensor) -> Answer:
        weights, ids = biased_grouped_topk(
            logits.to(device), bias.to(device), **example.arguments(), backend=backend
        )
        return weights.cpu(), ids.cpu()

    weights, ids = route(logits, bias)
    assert weights.isfinite().all(), f"weights {weights.tolist()}"
    in_order = ids.sort(dim=1).values
    assert (in_order[:, 1:] > in_order[:, :-1]).all(), f"repeated ids {ids.tolist()}"
    assert in_order[:, 0].min() >= 0
    assert in_order[:, -1].max() < spec.num_experts + spec.num_fused_shared_experts
    defined = DEFINED.get(backend, _all_rows)
    bits = backend != "xpu"
    call = Call(route, logits, bias, (weights, ids), spec, example.seed, defined, bits)
    rows = defined(logits, bias, spec)
    wrong = find_mismatch(weights[rows], ids[rows], logits[rows], call.bias_of(rows), spec)
    assert wrong is None, wrong
    RELATIONS[example.relation](call)


def _all_rows(logits: Tensor, bias: Tensor, spec: RouterSpec) -> Tensor:
    return torch.ones(logits.shape[0], dtype=torch.bool)


def _defined_on_xpu(logits: Tensor, bias: Tensor, spec: RouterSpec) -> Tensor:
    """Mask [T] without the deviations that ops/xpu_router.py documents."""
    if bias.isnan().any() or (bias[bias.isfinite()] < -9000).any():
        return torch.zeros(logits.shape[0], dtype=torch.bool)
    rows = ~logits.isnan().any(dim=1)
    if spec.topk_group < spec.num_expert_group:
        selectable = (bias > -torch.inf).view(spec.num_expert_group, -1).sum(dim=1)
        if (selectable >= 2).sum() < spec.topk_group:
            return torch.zeros_like(rows)
    return rows


DEFINED = {"xpu": _defined_on_xpu}


def _alone(call: Call) -> None:
    row = torch.tensor([call.seed % len(call.logits)])
    found = call.route(call.logits[row], call.bias_of(row))
    call.must_be_same(found, (call.answer[0][row], call.answer[1][row]), f"{row} alone")


def _shuffled(call: Call) -> None:
    order = torch.randperm(len(call.logits), generator=torch.Generator().manual_seed(call.seed))
    found = call.route(call.logits[order], call.bias_of(order))
    expected = call.answer[0][order], call.answer[1][order]
    call.must_be_same(found, expected, f"rows in the order {order.tolist()}")


def _twice(call: Call) -> None:
    bias = torch.cat([call.bias] * 2) if call.bias.dim() == 2 else call.bias
    found = call.route(torch.cat([call.logits] * 2), bias)
    expected = torch.cat([call.answer[0]] * 2), torch.cat([call.answer[1]] * 2)
    call.must_be_same(found, expected, "the batch twice")


def _again(call: Call) -> None:
    """On another number of threads, where threads are torch's."""
    threads = torch.get_num_threads()
    torch.set_num_threads(3 - threads)
    try:
        call.must_be_same(call.route(call.logits, call.bias), call.answer, "on other threads")
    finally:
        torch.set_num_threads(threads)


def _permuted(call: Call) -> None:
    """Groups, and experts within them, in another order: the same experts under new names."""
    draw = partial(torch.randperm, generator=torch.Generator().manual_seed(call.seed))
    size = call.spec.experts_per_group
    order = torch.cat([draw(size) + group * size for group in draw(call.spec.num_expert_group)])
    weights, ids = call.route(call.logits[:, order], call.bias[..., order])
    routed = slice(call.spec.topk_routed)
    ids[:, routed] = order[ids[:, routed].long()].int()
    _must_agree_where_decided(call, (weights, ids), call.answer, 0.0, "experts permuted")


def _shifted(call: Call) -> None:
    """A constant added to the bias; both in float32, so that only sums of keys are rounded."""
    shift = (-100.0, -1.0, 0.25, 8.0)[call.seed % 4]
    bias = call.bias.float()
    found, plain = call.route(call.logits, bias + shift), call.route(call.logits, bias)
    _must_agree_where_decided(call, found, plain, abs(shift), f"bias shifted by {shift}")


def _must_agree_where_decided(
    call: Call, found: Answer, expected: Answer, shift: float, what: str
) -> None:
    rows = _decided(call.logits, call.bias, call.spec, shift)
    for bias in (call.bias, call.bias.float() - shift):
        rows &= call.defined(call.logits, bias, call.spec)
    assert torch.equal(found[1][rows], expected[1][rows]), f"{what}: ids {found[1].tolist()}"
    torch.testing.assert_close(found[0][rows], expected[0][rows], rtol=1e-5, atol=1e-37, msg=what)


def _decided(logits: Tensor, bias: Tensor, spec: RouterSpec, shift: float) -> Tensor:
    """Mask [T] of rows in which no key or group near a cut is near another."""
    key = logits.double().sigmoid() + bias.double()
    largest = key.abs().amax(dim=1).clamp(min=1) + bias.double().abs().amax() + shift
    gap = KEY_ULPS * torch.finfo(torch.float32).eps * largest
    if spec.num_expert_group > 1:
        grouped = key.view(len(key), spec.num_expert_group, -1)
        score = grouped.topk(min(2, spec.experts_per_group)).values.sum(dim=2)
        best = score.sort(dim=1, descending=True)
        between = -best.values.diff(dim=1)  # [T, G-1]
        clear = torch.ones(len(key), dtype=torch.bool)
        if spec.topk_group < spec.num_expert_group:
            clear = between[:, spec.topk_group - 1] > 2 * gap
        kept = torch.zeros_like(score, dtype=torch.bool)
        kept.scatter_(1, best.indices[:, : spec.topk_group], True)
        key = key.masked_fill(~kept.repeat_interleave(spec.experts_per_group, dim=1), -1e300)
    else:
        clear = torch.ones(len(key), dtype=torch.bool)
    top = key.sort(dim=1, descending=True).values[:, : spec.topk_routed + 1]
    # NaN and infinities make the comparison false: their rules have cases of their own.
    return clear & (-top.diff(dim=1) > gap[:, None]).all(dim=1) & key.isfinite().all(dim=1)


RELATIONS = {
    "a row alone": _alone,
    "rows shuffled": _shuffled,
    "the batch twice": _twice,
    "again": _again,
    "experts permuted": _permuted,
    "bias shifted": _shifted,
}
