"""A few small built batches that a backend must route as the reference does before it serves.

They hold what breaks router kernels in the field: exact ties, a bias with a large offset,
scores that underflow, one and several rows. Outputs come from memory that was poisoned
just before, so a row or column left unwritten shows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

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
        _poison(logits.shape[0], spec.topk, device)
        weights, ids = run(logits.to(device), bias.to(device))
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


def _poison(rows: int, columns: int, device: torch.device) -> None:
    """Leave garbage where the allocator will probably place the next outputs."""
    torch.full((rows, columns), math.nan, dtype=torch.float32, device=device)
    torch.full((rows, columns), -777, dtype=torch.int32, device=device)
