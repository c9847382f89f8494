#!/usr/bin/env python3
"""Time the gate's float32 logits beside SGLang's 16-bit ones and other ways to get them.

    python scripts/bench_gate.py --out benchmarks/gate-cpu.csv

Checked first: a way whose logits are further than 1e-4 from float64 gets no time, except
SGLang's own, which is what there is to compare with. Weights are bfloat16. Every call takes
the next of 64 weights, as the layers of a model do, in an order drawn anew. Figures are
microseconds of one thread's own time, so that waiting for a core of a shared machine does
not count.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor
from torch.nn.functional import linear

from sglang_moe_ext.ops.linear import linear_float32

SHAPES = {(7168, 256): "DeepSeek-V3", (4096, 128): "GLM-4.5-Air"}
TOKENS = (1, 16, 256)
LAYERS = 64
TOLERANCE = 1e-4
STOCK = "SGLang, 16-bit logits"

Gate = Callable[[Tensor, Tensor], Tensor]


def whole(hidden: Tensor, weight: Tensor) -> Tensor:
    return linear(hidden.float(), weight.float())


def chunked(byte_count: int) -> Gate:
    def gate(hidden: Tensor, weight: Tensor) -> Tensor:
        hidden, rows = hidden.float(), byte_count // (4 * weight.shape[1])
        parts = range(0, weight.shape[0], rows)
        return torch.cat([linear(hidden, weight[i : i + rows].float()) for i in parts], dim=1)

    return gate


def cached() -> Gate:
    """A float32 copy of every weight: three times the memory, and stale if one is rebound."""
    copies: dict[int, Tensor] = {}

    def gate(hidden: Tensor, weight: Tensor) -> Tensor:
        if id(weight) not in copies:
            copies[id(weight)] = weight.float()
        return linear(hidden.float(), copies[id(weight)])

    return gate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="CSV file")
    parser.add_argument("--calls", type=int, default=48, help="per way and cell (default 48)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    gates: dict[str, Gate] = {
        STOCK: linear,
        "ours": linear_float32,
        "whole weight widened": whole,
        **{f"widened by {kib} KiB": chunked(kib << 10) for kib in (256, 512, 1024, 2048)},
        "float32 copy kept": cached(),
    }
    rows = []
    for (hidden_size, experts), model in SHAPES.items():
        random = torch.Generator().manual_seed(0)
        weights = [
            (torch.randn(experts, hidden_size, generator=random) / hidden_size**0.5).bfloat16()
            for _ in range(LAYERS)
        ]
        for tokens in TOKENS:
            hidden = torch.randn(tokens, hidden_size, generator=random).bfloat16()
            errors = {name: _error(gate, hidden, weights[0]) for name, gate in gates.items()}
            right = {n: g for n, g in gates.items() if n == STOCK or errors[n] <= TOLERANCE}
            times = _times(right, hidden, weights, options.calls)
            for name in gates:
                cell = {"hidden": hidden_size, "experts": experts, "model": model}
                row = cell | {"tokens": tokens, "gate": name, "error": f"{errors[name]:.1e}"}
                if name in times:
                    row["us"] = f"{times[name]:.0f}"
                    row["of stock"] = f"{times[name] / times[STOCK]:.2f}"
                rows.append(row)
                print(*(str(value) for value in row.values()), sep="\t", flush=True)
    if options.out:
        with options.out.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


def _error(gate: Gate, hidden: Tensor, weight: Tensor) -> float:
    exact = hidden.double() @ weight.double().T
    return (gate(hidden, weight).double() - exact).abs().max().item()


def _times(
    gates: dict[str, Gate], hidden: Tensor, weights: list[Tensor], calls: int
) -> dict[str, float]:
    """Median microseconds per call."""
    taken: dict[str, list[float]] = {name: [] for name in gates}
    for gate in gates.values():
        for weight in weights:
            gate(hidden, weight)
    order, shuffle = [*gates], Random(0).shuffle
    for call in range(calls):
        shuffle(order)  # whoever comes next finds the caches as another left them
        for turn, name in enumerate(order):
            weight = weights[(call * len(order) + turn) % LAYERS]
            started = time.thread_time()
            gates[name](hidden, weight)
            taken[name].append(time.thread_time() - started)
    return {name: median(values) * 1e6 for name, values in taken.items()}


if __name__ == "__main__":
    main()
