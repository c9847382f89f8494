"""How scripts/bench_router.py takes times: every call gets the next of several inputs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sglang_moe_ext.ops.backend import Run


class Input(NamedTuple):
    logits: Tensor
    bias: Tensor


def time_calls(run: Run, inputs: Sequence[Input]) -> list[float]:
    """Seconds of single calls from Python; the GPU's queue never holds more than one lap."""
    times: list[float] = []
    started = time.perf_counter()
    while len(times) < 20 * len(inputs) or time.perf_counter() - started < 0.5:
        for logits, bias in inputs:
            before = time.perf_counter()
            run(logits, bias)
            times.append(time.perf_counter() - before)
        if logits.device.type != "cpu":
            getattr(torch, logits.device.type).synchronize()
        if len(times) >= 4 * len(inputs) and time.perf_counter() - started > 3:
            break
    return times[len(inputs) :]


def time_graph(run: Run, inputs: Sequence[Input], laps: int = 4, replays: int = 40) -> list[float]:
    """Seconds per call of replayed graphs, each several laps over the inputs."""
    stream = torch.cuda.Stream()
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
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
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
