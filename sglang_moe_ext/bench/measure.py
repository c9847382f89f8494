"""Judge and time routers: an answer that is wrong gets a verdict, and no time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch

from sglang_moe_ext.bench.judge import find_wrong, make_inputs
from sglang_moe_ext.bench.peers import UnavailableError
from sglang_moe_ext.bench.result import FAILED, SKIPPED, TIMED, WRONG, Result
from sglang_moe_ext.bench.routers import Router
from sglang_moe_ext.bench.shapes import Shape
from sglang_moe_ext.bench.timing import Input, quantiles, time_calls, time_graph, time_laps
from sglang_moe_ext.notice import describe
from sglang_moe_ext.ops.backend import Run
from sglang_moe_ext.ops.choose import choose
from sglang_moe_ext.ops.spec import RouterSpec

TIMERS = {"call": time_calls, "lap": time_laps, "graph": time_graph}


def best_device() -> str:
    return next((d for d in ("cuda", "xpu") if getattr(torch, d).is_available()), "cpu")


def make_spec(shape: Shape, device: str, dtype: str) -> RouterSpec:
    """Raises ValueError if no such router can exist."""
    return RouterSpec(
        num_experts=shape.num_experts,
        topk=shape.topk,
        num_expert_group=shape.num_expert_group,
        topk_group=shape.topk_group,
        routed_scaling_factor=2.5,
        apply_routed_scaling_factor_on_output=True,
        logits_dtype=getattr(torch, dtype),
        device_type=device,
    )


def automatic_choice(spec: RouterSpec) -> str:
    """The backend that would serve, self-check included."""
    return choose(spec, torch.device(spec.device_type)).decision.backend


def measures(device: str, tokens: int) -> tuple[str, ...]:
    """The device's own time, and for one token the launcher's, which a CPU has none of."""
    if device == "cpu":
        return ("call",)
    of_device = "graph" if device == "cuda" else "lap"
    return ("call", of_device) if tokens == 1 else (of_device,)


def measure_shape(
    shape: Shape,
    spec: RouterSpec,
    routers: Sequence[Router],
    tokens: Sequence[int],
    progress: Callable[[str], None],
) -> Iterator[Result]:
    """Every router on every number of tokens; `progress` is told who is next."""
    inputs = {rows: make_inputs(spec, rows) for rows in tokens}
    for router in routers:
        progress(f"{shape.text} {router.name}")
        verdict, detail, run = _bind(router, spec)
        for rows in tokens:
            timings: Mapping[str, Mapping[str, float]] = {}
            if run is not None:
                verdict, detail, timings = _judge_and_time(router, run, spec, inputs[rows])
            for measure in measures(spec.device_type, rows):
                yield Result(
                    shape.text,
                    router.name,
                    router.role,
                    rows,
                    measure,
                    verdict,
                    detail,
                    timings.get(measure),
                )


def _bind(router: Router, spec: RouterSpec) -> tuple[str, str, Run | None]:
    try:
        return "", "", router.bind(spec)
    except UnavailableError as reason:
        return SKIPPED, str(reason), None
    except Exception as error:  # compilers and broken packages raise anything
        return FAILED, describe(error), None


def _judge_and_time(
    router: Router, run: Run, spec: RouterSpec, inputs: Sequence[Input]
) -> tuple[str, str, Mapping[str, Mapping[str, float]]]:
    try:
        wrong = router.role != "floor" and find_wrong(run, inputs, spec)
        if wrong:
            return WRONG, wrong, {}
        names = measures(spec.device_type, len(inputs[0].logits))
        return TIMED, "", {name: quantiles(TIMERS[name](run, inputs)) for name in names}
    except Exception as error:  # a peer may refuse in any way; the others still get their turn
        return FAILED, describe(error), {}
