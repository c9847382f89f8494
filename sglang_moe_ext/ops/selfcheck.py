"""A few small built batches that a backend must route as the reference does before it serves.

They hold what breaks router kernels in the field: exact ties, a bias with a large offset,
scores that underflow, one and several rows. Outputs come from poisoned memory, so a row or
column left unwritten shows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from sglang_moe_ext.ops.backend import Run
from sglang_moe_ext.ops.compare import find_mismatch
from sglang_moe_ext.ops.spec import RouterSpec

ODD_ROWS = 7


def find_failure(run: Run, spec: RouterSpec, device: torch.device) -> str | None:
    """None if `run` agrees with the reference on every built batch, else what it got wrong."""
    for name, logits, bias in _batches(spec):
        logits = logits.to(spec.logits_dtype)
        bias = bias.to(spec.bias_dtype)
        if spec.per_token_bias:
            bias = bias.expand_as(logits).contiguous()
        logits_there, bias_there = logits.to(device), bias.to(device)
        _poison(logits.shape[0], spec.topk, device)
        with _Poisoned():
            weights, ids = run(logits_there, bias_there)
        mismatch = find_mismatch(weights, ids, logits, bias, spec)
        if mismatch:
            return f"{name}: {mismatch}"
    return None


def _batches(spec: RouterSpec) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Named (logits [T, E], bias [E]), deterministic; dyadic where ties must be exact."""
    E = spec.num_experts
    expert = torch.arange(E, dtype=torch.float64)
    row = torch.arange(ODD_ROWS, dtype=torch.float64)[:, None]
    spread = 3 * torch.sin(1.3 * expert + 0.7 * row) + torch.cos(math.pi * expert * row / 7)
    zeros = torch.zeros(ODD_ROWS, E)
    yield "all experts tied", zeros[:1], torch.zeros(E)
    yield "ties among four levels", zeros, (expert % 4) / 8
    yield "a single row", spread[:1], 0.1 * torch.cos(expert)
    yield "a bias offset by 8", spread, 8 + (expert * 7 % E) / 512
    yield "a negative bias", spread, -2 - (expert * 3 % E) / 512
    yield "scores that underflow", -200 + spread, torch.zeros(E) + (expert % 8) / 8


class _Poisoned(TorchFunctionMode):
    """What a backend allocates from Python comes filled with garbage."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _UNINITIALISED:
            result.fill_(_garbage(result.dtype))
        return result


_UNINITIALISED = frozenset(
    (torch.empty, torch.empty_like, torch.empty_strided, Tensor.new_empty, Tensor.new_empty_strided)
)


def _garbage(dtype: torch.dtype) -> float:
    if dtype.is_floating_point:
        return math.nan
    return 1 if dtype == torch.bool else torch.iinfo(dtype).max


def _poison(rows: int, columns: int, device: torch.device) -> None:
    """The same for what a kernel library allocates, as far as the allocator hands it out again.

    Two places at once, for weights and ids; the bits of -777 are a NaN as float32.
    """
    held = [torch.full((rows, columns), -777, dtype=torch.int32, device=device) for _ in range(2)]
    del held
