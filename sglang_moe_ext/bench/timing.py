"""How times are taken: every call gets the next of several inputs.

Caches and branch predictors learn a repeated one.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sglang_moe_ext.ops.backend import Run

SECONDS, MAX_SECONDS, MIN_LAPS = 0.2, 1.0, 5  # of one measure


class Input(NamedTuple):
    logits: Tensor
    bias: Tensor


def time_calls(run: Run, inputs: Sequence[Input]) -> list[float]:
    """Seconds of single calls from Python; the GPU's queue never holds more than one lap."""
    times: list[float] = []
    started = time.perf_counter()
    while _wants_more(len(times) // len(inputs), started):
        for logits, bias in inputs:
            before = time.perf_counter()
            run(logits, bias)
            times.append(time.perf_counter() - before)
        _synchronize(inputs)
    return times[len(inputs) :]


def time_laps(run: Run, inputs: Sequence[Input]) -> list[float]:
    """Seconds per call of whole laps over the inputs, awaited at their end."""
    times: list[float] = []
    started = time.perf_counter()
    while _wants_more(len(times), started):
        before = time.perf_counter()
        for logits, bias in inputs:
            run(logits, bias)
        _synchronize(inputs)
        times.append((time.perf_counter() - before) / len(inputs))
    return times[1:]


def _wants_more(laps: int, started: float) -> bool:
    """The first lap warms up, so at least one is left however slow they are."""
    elapsed = time.perf_counter() - started
    return laps < 2 or (elapsed < SECONDS if laps >= MIN_LAPS else elapsed < MAX_SECONDS)


def _synchronize(inputs: Sequence[Input]) -> None:
    getattr(torch, inputs[0].logits.device.type).synchronize()


def time_graph(run: Run, inputs: Sequence[Input], laps: int = 4, replays: int = 40) -> list[float]:
    """Seconds per call of replayed graphs, each several laps over the inputs."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        for logits, bias in inputs:
            run(logits, bias)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(laps):
            for logits, bias in inputs:
                run(logits, bias)
    times = []
    for _ in range(replays):
        start, end = (
            torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            for _ in range(2)
        )
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e-3 / (laps * len(inputs)))
    return times[3:]


def quantiles(seconds: Sequence[float]) -> dict[str, float]:
    """Median and two more quantiles, in microseconds."""
    us = torch.tensor(seconds, dtype=torch.float64) * 1e6
    marks = {"p20_us": 0.2, "median_us": 0.5, "p80_us": 0.8}
    return {name: round(float(us.quantile(mark)), 3) for name, mark in marks.items()}
