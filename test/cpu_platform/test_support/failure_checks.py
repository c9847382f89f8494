"""Checks for the failure classes that one built row can't show: sizes, strides, memory, padding.

Each is given a router and raises if it fails. A router is called as `biased_grouped_topk` is;
its `select` goes through SGLang's select_experts with what only that takes.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import pytest
import torch
from torch import Tensor

from sglang_moe_ext.ops.compare import find_mismatch
from sglang_moe_ext.ops.spec import LOGITS_DTYPES, RouterSpec
from test_support.failure_cases import CASES, Case

Answer = tuple[Tensor, Tensor]
BOTH = ("operation", "select_experts")
SELECT = ("select_experts",)


class Router(Protocol):
    """most_rows: more would take too long here."""

    most_rows: int

    def __call__(self, logits: Tensor, bias: Tensor, topk: int, **arguments: Any) -> Answer: ...

    def select(self, logits: Tensor, bias: Tensor, topk: int, **arguments: Any) -> Answer: ...


@dataclass(frozen=True)
class Check:
    """failure: its class. what: a wrong router does. paths: how it is called."""

    failure: str
    what: str
    run: Callable[[Router], None]
    paths: tuple[str, ...] = BOTH

    @property
    def name(self) -> str:
        return f"{self.failure}-{self.what}".replace(" ", "-")


def run_case(case: Case, route: Router) -> None:
    arguments = {"renormalize": True, **case.arguments}
    weights, ids = route(case.logits, case.bias, len(case.ids), **arguments)
    rows = len(case.logits)
    assert ids.tolist() == [list(case.ids)] * rows, f"ids {ids[0].tolist()}, not {case.ids}"
    assert weights.isfinite().all(), f"weights {weights[0].tolist()}"
    if case.weights is not None:
        expected = torch.tensor([case.weights] * rows)
        torch.testing.assert_close(weights, expected, rtol=1e-5, atol=0)


def normal(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def groups(G: int, TG: int, **more: Any) -> dict[str, Any]:
    return {"num_expert_group": G, "topk_group": TG, **more}


def agrees(
    route: Router, logits: Tensor, bias: Tensor, topk: int, G: int = 1, TG: int = 1, **flags: Any
) -> None:
    """With the reference."""
    arguments = {"renormalize": True, **flags}
    weights, ids = route(logits, bias, topk, **groups(G, TG, **arguments))
    spec = RouterSpec(
        logits.shape[1],
        topk,
        G,
        TG,
        **arguments,
        logits_dtype=logits.dtype,
        bias_dtype=bias.dtype,
    )
    wrong = find_mismatch(weights, ids, logits, bias, spec)
    assert wrong is None, wrong


def same(found: Answer, expected: Answer) -> None:
    assert torch.equal(found[1], expected[1]), (
        f"ids {found[1].tolist()}, not {expected[1].tolist()}"
    )
    assert torch.equal(found[0], expected[0]), "weights differ"


class TooManyRowsError(Exception):
    """The check takes more rows than this router is given here."""


def repeated_rows(route: Router, base: Tensor, rows: int, bias: Tensor, G: int, TG: int) -> None:
    """Many rows are routed as a few are, and the few as by the reference."""
    if rows > route.most_rows:
        raise TooManyRowsError(f"{rows} rows, at most {route.most_rows} here")
    agrees(route, base, bias, 8, G, TG)
    few = route(base, bias, 8, renormalize=True, **groups(G, TG))
    at = torch.arange(rows) % len(base)
    weights, ids = route(base[at], bias, 8, renormalize=True, **groups(G, TG))
    wrong = (ids != few[1][at]).any(dim=1) | ~torch.isclose(weights, few[0][at]).all(dim=1)
    assert not wrong.any(), f"{rows} rows: row {int(wrong.nonzero()[0])} differs"


def saturated_scores(route: Router) -> None:
    """Scores of exactly 1 tie at the top of groups."""
    agrees(route, 8 * normal(min(64, route.most_rows), 256), torch.zeros(256), 8, 8, 4)


def independent_rows(route: Router) -> None:
    rows = min(67, route.most_rows)
    logits, bias = 4 * normal(rows, 160, seed=3), normal(160, seed=4) / 8
    logits[1] = 0
    answer = route(logits, bias, 8, renormalize=True, **groups(1, 1))
    for row in (0, 1, rows - 1):
        alone = route(logits[row : row + 1], bias, 8, renormalize=True, **groups(1, 1))
        same(alone, (answer[0][row : row + 1], answer[1][row : row + 1]))
    flipped = route(logits.flip(0), bias, 8, renormalize=True, **groups(1, 1))
    same((flipped[0].flip(0), flipped[1].flip(0)), answer)


def too_many_experts(route: Router) -> None:
    with pytest.raises(ValueError, match="topk"):
        route(torch.zeros(1, 8), torch.arange(8) / 8, 6, renormalize=True, **groups(2, 1))


def wide_rows(experts: int, topk: int, route: Router) -> None:
    logits = torch.where(torch.arange(experts) < experts - topk, -4.0, 4.0)[None]
    agrees(route, logits, torch.zeros(experts), topk)


def bad_rows_stay_alone(route: Router) -> None:
    logits = normal(5, 128)
    bad = logits.clone()
    bad[1], bad[3, 7], bad[3, 9] = torch.nan, torch.nan, torch.inf
    bias = torch.zeros(128)
    weights, ids = route(bad, bias, 8, renormalize=True, **groups(1, 1))
    assert all(len(set(row)) == 8 for row in ids.tolist()), f"repeated ids {ids.tolist()}"
    assert ids.min() >= 0
    assert ids.max() < 128
    assert weights.isfinite().all(), f"weights {weights.tolist()}"
    clean = [0, 2, 4]
    expected = route(logits, bias, 8, renormalize=True, **groups(1, 1))
    same((weights[clean], ids[clean]), (expected[0][clean], expected[1][clean]))


def offset_bias(route: Router) -> None:
    """A correction bias as trained models have it: 6.8 to 7.1."""
    t, e = torch.arange(min(64, route.most_rows))[:, None], torch.arange(256)
    bias = 6.817 + 0.246 * ((97 * e) % 256) / 255
    agrees(route, -6 + 2 * torch.sin(0.7 * t + 1.3 * e), bias, 8)


def sixteen_bit_logits(dtype: torch.dtype, route: Router) -> None:
    logits = (2 * normal(min(64, route.most_rows), 256)).to(dtype)
    agrees(route, logits, normal(256, seed=1) / 10, 8, 8, 4)


def float32_logits(route: Router) -> None:
    """Two logits that are one bfloat16."""
    _, ids = route(
        torch.tensor([[1.0, 1.001]]), torch.zeros(2), 1, renormalize=True, **groups(1, 1)
    )
    assert ids.tolist() == [[1]]


def pairs_of_types(route: Router) -> None:
    """The same values in nine pairs of dtypes."""
    logits = (torch.arange(256) * 37 % 256 - 128)[None].float() / 32  # exact in bfloat16
    bias = (torch.arange(256) * 11 % 32).float() / 32
    agrees(route, logits, bias, 8, 8, 4)
    plain = route(logits, bias, 8, renormalize=True, **groups(8, 4))
    for dtype in LOGITS_DTYPES:
        for bias_dtype in LOGITS_DTYPES:
            found = route(
                logits.to(dtype), bias.to(bias_dtype), 8, renormalize=True, **groups(8, 4)
            )
            assert found[1].tolist() == plain[1].tolist(), f"{dtype}, bias {bias_dtype}"
            torch.testing.assert_close(found[0], plain[0], rtol=1e-5, atol=0)


def small_scores(route: Router) -> None:
    """Relative precision down to 1e-37, without renormalising."""
    logits = -torch.linspace(20, 84, 8)[None]
    agrees(route, logits, torch.zeros(8), 8, renormalize=False)


def template_shapes(route: Router) -> None:
    for experts in (8, 64, 128, 256):
        for topk in (1, 6, 8):
            bias = (torch.arange(experts) * 5 % 16) / 8
            agrees(route, normal(1, experts), bias, topk, renormalize=False)


def shared_ids_are_fixed(shared: int, route: Router) -> None:
    arguments = groups(1, 1, renormalize=True, num_fused_shared_experts=shared)
    logits = normal(min(64, route.most_rows), 8)
    answers = [route(logits, torch.zeros(8), 2 + shared, **arguments) for _ in range(2)]
    same(answers[0], answers[1])


def one_group(route: Router) -> None:
    logits, bias = normal(3, 384), normal(384, seed=1) / 10
    one = route(logits, bias, 8, renormalize=True, **groups(1, 1))
    none = route(logits, bias, 8, renormalize=True, **groups(0, 0))
    same(none, one)


def rows_all_written(rows: int, route: Router) -> None:
    repeated_rows(route, normal(min(7, rows), 256, seed=2), rows, torch.zeros(256), 8, 4)


def rows_beyond_limits(route: Router) -> None:
    """Around token counts at which some dispatchers take another kernel."""
    for rows in (54271, 54273, 64447, 64449):
        repeated_rows(route, normal(7, 384, seed=2), rows, torch.zeros(384), 1, 1)


def strides(route: Router) -> None:
    wide, bias = normal(9, 3 * 72), normal(2 * 60, seed=1)[::2]
    transposed = wide.t().contiguous().t()
    for logits in (wide[:, :60], wide[:, 7:67], wide[::2, 72:132], transposed[:, 5:65]):
        plain = route(logits.contiguous(), bias.contiguous(), 4, renormalize=True, **groups(1, 1))
        weights, ids = route(logits, bias, 4, renormalize=True, **groups(1, 1))
        assert torch.equal(ids, plain[1]), f"ids {ids.tolist()}"
        torch.testing.assert_close(weights, plain[0], rtol=1e-6, atol=0)


def long_strides(route: Router) -> None:
    """The third row starts 2^31 elements in; only the pages of rows that exist are touched."""
    stride, experts = 2**30, 128
    memory = torch.from_numpy(np.empty(2 * stride + experts, dtype=np.int16)).view(torch.bfloat16)
    logits = memory.as_strided((3, experts), (stride, 1))
    logits.copy_(normal(3, experts))
    bias = normal(experts, seed=1) / 10
    plain = route(logits.contiguous(), bias, 6, renormalize=True, **groups(1, 1))
    same(route(logits, bias, 6, renormalize=True, **groups(1, 1)), plain)


def before_a_guard_page(values: Tensor) -> Tensor:
    """The same values, so placed that reading one byte beyond them ends the process."""
    size = mmap.PAGESIZE
    memory = mmap.mmap(-1, 2 * size)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    protected = ctypes.CDLL(None, use_errno=True).mprotect(
        ctypes.c_void_p(start + size), ctypes.c_size_t(size), 0
    )
    assert protected == 0, f"mprotect: errno {ctypes.get_errno()}"
    offset = size - values.numel() * values.element_size()
    placed = torch.frombuffer(memory, dtype=values.dtype, count=values.numel(), offset=offset)
    return placed.copy_(values.flatten()).view(values.shape)


def no_over_read(sizes: tuple[int, ...], route: Router) -> None:
    for experts in sizes:
        for dtype in (torch.float32, torch.bfloat16):
            logits = before_a_guard_page(normal(2, experts).to(dtype))
            bias = before_a_guard_page(torch.arange(experts).to(dtype) / 16)
            agrees(route, logits, bias, 1)


SHAPES = (
    (60, 4, 1, 1), (60, 4, 6, 3), (72, 6, 9, 4), (128, 1, 1, 1), (128, 8, 4, 2), (160, 8, 1, 1),
    (160, 6, 8, 3), (256, 16, 1, 1), (288, 8, 1, 1), (384, 8, 1, 1), (384, 10, 6, 2),
    (512, 22, 1, 1), (512, 8, 16, 4), (896, 16, 1, 1),
)  # fmt: skip


def shape(E: int, K: int, G: int, TG: int, route: Router) -> None:
    rows = 3 if route.most_rows > 100 else 1
    agrees(route, normal(rows, E), normal(E, seed=1) / 10, K, G, TG)


def no_rows(route: Router) -> None:
    for G, TG, shared in ((4, 2, 0), (1, 1, 0), (1, 1, 1)):
        arguments = groups(G, TG, renormalize=True, num_fused_shared_experts=shared)
        weights, ids = route(torch.zeros(0, 128), torch.zeros(128), 4, **arguments)
        assert weights.shape == ids.shape == (0, 4), f"{tuple(weights.shape)}"
        assert (weights.dtype, ids.dtype) == (torch.float32, torch.int32)


def padded(valid: int) -> Tensor:
    logits = normal(8, 16)
    logits[valid:] = torch.nan
    return logits


def count(rows: int) -> Tensor:
    """Of rows that are no padding; SGLang's kernel on GPUs takes nothing but int32."""
    return torch.tensor(rows, dtype=torch.int32)


def padding_is_masked(route: Router) -> None:
    bias = normal(16, seed=1) / 10
    for valid in (0, 5, 8):
        weights, ids = route.select(padded(valid), bias, 4, num_token_non_padded=count(valid))
        assert (ids[valid:] == -1).all(), f"padded ids {ids[valid:].tolist()}"
        if valid:
            alone = route.select(padded(valid)[:valid], bias, 4)
            same((weights[:valid], ids[:valid]), alone)


def padding_changes_in_place(route: Router) -> None:
    """One count tensor, rewritten between calls as a graph's input buffer is."""
    rows, bias = count(5), normal(16, seed=1) / 10
    for valid in (5, 3, 8, 0):
        rows.fill_(valid)
        _, ids = route.select(padded(valid), bias, 4, num_token_non_padded=rows)
        assert (ids >= 0).all(dim=1).tolist() == [row < valid for row in range(8)]


# Logical expert -> physical: 2 and 5 have two replicas each.
PHYSICAL = torch.tensor([3, 1, 0, 2, 9, 5, 4, 7])
REPLICAS = torch.tensor([[3, 3], [1, 1], [0, 8], [2, 2], [9, 9], [5, 6], [4, 4], [7, 7]])


def location(algorithm: str = "static") -> Any:
    from sglang.srt.eplb.expert_location_dispatch import ExpertLocationDispatchInfo

    return ExpertLocationDispatchInfo(
        ep_dispatch_algorithm=algorithm,
        partial_logical_to_rank_dispatch_physical_map=PHYSICAL,
        partial_logical_to_all_physical_map=REPLICAS,
        partial_logical_to_all_physical_map_num_valid=torch.tensor([1, 1, 2, 1, 1, 2, 1, 1]),
        num_physical_experts=10,
        rank_invariant=True,
    )


def padding_is_no_index(route: Router) -> None:
    _, ids = route.select(
        torch.zeros(3, 8),
        torch.arange(8) / 8,
        2,
        num_token_non_padded=count(1),
        expert_location_dispatch_info=location(),
    )
    assert ids.sort(dim=1).values.tolist() == [[4, 7], [-1, -1], [-1, -1]]


def remapped_once(shared: int, route: Router) -> None:
    bias = torch.arange(8) / 8
    _, ids = route.select(
        torch.zeros(2, 8),
        bias,
        3 + shared,
        num_fused_shared_experts=shared,
        expert_location_dispatch_info=location(),
    )
    assert ids.dtype == torch.int32
    assert ids[:, :3].sort(dim=1).values.tolist() == [[4, 5, 7]] * 2
    assert ids[:, 3:].tolist() == [[8]] * 2 if shared else ids.shape == (2, 3)


def replicas_agree_on_all_ranks(route: Router) -> None:
    choose = partial(
        route.select,
        normal(4, 8),
        torch.zeros(8),
        3,
        expert_location_dispatch_info=location("dynamic"),
    )
    same(choose(), choose())


def captured_ids_are_logical(route: Router) -> None:
    seen: list[Tensor] = []
    _, ids = route.select(
        torch.zeros(2, 8),
        torch.arange(8) / 8,
        3,
        expert_location_dispatch_info=location(),
        capture=seen.append,
    )
    assert [each.sort(dim=1).values.tolist() for each in seen] == [[[5, 6, 7]] * 2]
    assert ids.sort(dim=1).values.tolist() == [[4, 5, 7]] * 2


def _checks() -> Iterator[Check]:
    for case in CASES:
        # SGLang itself demands numbers for both.
        paths = BOTH if case.arguments.get("num_expert_group") != 0 else ("operation",)
        yield Check(case.failure, case.what, partial(run_case, case), paths)
    yield Check("F01", "saturated scores tie at the top of groups", saturated_scores)
    yield Check("F06", "a row depends on its batch", independent_rows)
    yield Check("F08", "more experts than the kept groups hold", too_many_experts)
    for E, K in ((896, 16), (512, 22)):
        yield Check("F09", f"experts beyond capacity {E} {K}", partial(wide_rows, E, K))
    yield Check("F10", "bad rows spoil others", bad_rows_stay_alone)
    yield Check("F13", "an offset bias collapses", offset_bias)
    for dtype in (torch.bfloat16, torch.float16):
        name = str(dtype).removeprefix("torch.")
        yield Check("F14", f"scores kept in {name}", partial(sixteen_bit_logits, dtype))
    yield Check("F15", "float32 logits are downcast", float32_logits)
    yield Check("F16", "a buffer is read in another type", pairs_of_types)
    yield Check("F17", "small scores lose precision", small_scores)
    yield Check("F21", "one template shape is wrong", template_shapes)
    for shared in (1, 2):
        yield Check("F26", f"{shared} shared id drawn", partial(shared_ids_are_fixed, shared))
    yield Check("F27", "one group as 0 or 1 differs", one_group, ("operation",))
    for rows in (1, 16, 1024, 1025, 1407, 1408, 1409, 2048, 4097, 65536):
        yield Check("F28", f"{rows} rows unwritten", partial(rows_all_written, rows))
    yield Check("F29", "another kernel beyond so many rows", rows_beyond_limits)
    yield Check("F30", "strides ignored", strides)
    for E, K, G, TG in SHAPES:
        yield Check("F33", f"shape {E} {K} g{G} tg{TG}", partial(shape, E, K, G, TG))
    yield Check("F35", "no rows", no_rows)
    yield Check("F36", "padded rows are routed", padding_is_masked, SELECT)
    yield Check("F37", "the padding mark is an index", padding_is_no_index, SELECT)
    yield Check("F38", "a stale count of valid rows", padding_changes_in_place, SELECT)
    for shared in (0, 1):
        what = f"remapped twice or not, {shared} shared"
        yield Check("F39", what, partial(remapped_once, shared), SELECT)
    yield Check("F39", "replicas differ between ranks", replicas_agree_on_all_ranks, SELECT)
    yield Check("F40", "captured ids are physical", captured_ids_are_logical, SELECT)
    # The last two, since a router that reads where it mustn't ends its process.
    yield Check("F34", "a single expert", partial(no_over_read, (1,)))
    yield Check("F32", "reads beyond the last expert", partial(no_over_read, (2, 4, 8, 24)))
    yield Check("F31", "offsets in 32 bits", long_strides)


CHECKS = tuple(_checks())
