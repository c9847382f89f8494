"""A few small built batches that a backend must route as the reference does before it serves.

They hold what breaks router kernels in the field: exact ties, a bias with a large offset,
scores that underflow, one and several rows, and more rows than a kernel may have been tried
with. Tensors that the backend allocates are poisoned, so a row or column left unwritten shows.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from sglang_moe_ext.ops.backend import Run
from sglang_moe_ext.ops.compare import WEIGHT_ATOL, WEIGHT_RTOL, find_mismatch
from sglang_moe_ext.ops.spec import RouterSpec

ODD_ROWS = 7
# A kernel for some GPUs left every row from the 1409th on unwritten. With more than 256 experts
# it is as many logits in fewer rows, which keeps the slowest backend under 50 ms.
MANY_ROWS, MANY_LOGITS = 1409, 1409 * 256


def find_failure(run: Run, spec: RouterSpec, device: torch.device) -> str | None:
    """None if `run` agrees with the reference on every built batch, else what it got wrong."""
    with _one_thread():
        for name, logits, bias in _batches(spec):
            weights, ids = _run(run, logits, bias, spec.topk, device)
            mismatch = find_mismatch(weights, ids, logits, bias, spec)
            if mismatch:
                return f"{name}: {mismatch}"
        # The last batch, whose answer is right.
        return _find_failure_of_many_rows(run, logits, bias, (weights.cpu(), ids.cpu()), device)


def _find_failure_of_many_rows(
    run: Run, logits: Tensor, bias: Tensor, answer: tuple[Tensor, Tensor], device: torch.device
) -> str | None:
    """The same rows over and over: a row's result does not depend on its batch."""
    rows = min(MANY_ROWS, MANY_LOGITS // logits.shape[1] | 1)
    row = torch.arange(rows) % len(logits)
    many_bias = bias[row] if bias.dim() == 2 else bias
    want_weights, want_ids = answer[0][row], answer[1][row]
    topk = want_ids.shape[1]
    weights, ids = (each.cpu() for each in _run(run, logits[row], many_bias, topk, device))
    if weights.shape != want_weights.shape or ids.shape != want_ids.shape:
        found = tuple(weights.shape), tuple(ids.shape)
        return f"{rows} rows: found weights and ids {found}, expected {tuple(want_ids.shape)}"
    close = torch.isclose(weights, want_weights, rtol=WEIGHT_RTOL, atol=WEIGHT_ATOL)
    wrong = ((ids != want_ids) | ~close).any(dim=1)
    if wrong.any():
        at = int(wrong.nonzero()[0])
        return (
            f"{rows} rows: row {at}: ids {ids[at].tolist()}, weights {weights[at].tolist()}, "
            f"expected {want_ids[at].tolist()} and {want_weights[at].tolist()} "
            f"as in a batch of {len(logits)}"
        )
    return None


def _run(
    run: Run, logits: Tensor, bias: Tensor, topk: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    logits, bias = logits.to(device), bias.to(device)
    # A library allocates by itself, probably this memory for its weights and ids, freed at once;
    # as float32 the bits of -777 are a NaN.
    held = [torch.full((len(logits), topk), -777, dtype=torch.int32, device=device) for _ in (0, 1)]
    del held
    with PoisonedMemory():
        return run(logits, bias)


def _batches(spec: RouterSpec) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Named logits [T, E] and bias [E] or [T, E], deterministic; dyadic where ties are exact."""
    E = spec.num_experts
    expert = torch.arange(E, dtype=torch.float64)
    row = torch.arange(ODD_ROWS, dtype=torch.float64)[:, None]
    spread = 3 * torch.sin(1.3 * expert + 0.7 * row) + torch.cos(math.pi * expert * row / 7)
    zeros = torch.zeros(ODD_ROWS, E)
    for name, logits, bias in (
        ("all experts tied", zeros[:1], torch.zeros(E)),
        ("ties among four levels", zeros, (expert % 4) / 8),
        ("a single row", spread[:1], 0.1 * torch.cos(expert)),
        ("a bias offset by 8", spread - 6, 8 + (expert * 7 % E) / 512),
        ("scores that underflow", -200 + spread, torch.zeros(E) + (expert % 8) / 8),
        ("a negative bias", spread, -2 - (expert * 3 % E) / 512),
    ):
        logits = logits.to(spec.logits_dtype)
        bias = bias.to(spec.bias_dtype)
        yield name, logits, bias.expand_as(logits).contiguous() if spec.per_token_bias else bias


class PoisonedMemory(TorchFunctionMode):
    """What this thread allocates through torch starts as NaN or a number that is no expert."""

    _ALLOCATORS = (
        torch.empty,
        torch.empty_like,
        torch.empty_strided,
        torch.empty_permuted,
        Tensor.new_empty,
        Tensor.new_empty_strided,
    )

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if function in self._ALLOCATORS and result.dtype != torch.bool:
            result.fill_(math.nan if result.is_floating_point() else -77)
        return result


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """So little work is not worth waking threads for: on a busy machine each wake costs 10 ms."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
