"""Run inside one SGLang release: is the plugin live and right there? Prints one JSON line.

`python probe_release.py LEVEL`, with the release first on the path (`compatibility.examine` sees
to it). "level" says how far the release imports, at most to LEVEL; what needs more is left out.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import itertools
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import probe_gate
import torch
from test_support.failure_cases import CASES, Case
from torch import Tensor

from sglang_moe_ext import ledger, overrides
from sglang_moe_ext.ops import RouterSpec
from sglang_moe_ext.ops.compare import find_mismatch
from sglang_moe_ext.ops.reference import reference_topk

# By level, what must import for it besides all that the levels before it need.
LEVELS = {
    "router": "sglang.srt.layers.moe.topk",
    "model": probe_gate.MODEL,
    "server": "sglang.srt.entrypoints.http_server",
}
# E, K, G, TG, S as models have them, and shapes that are no power of two.
SHAPES = (
    (256, 8, 8, 4, 0),
    (256, 9, 8, 4, 1),
    (384, 8, 1, 1, 0),
    (160, 8, 1, 1, 0),
    (128, 6, 1, 1, 0),
    (512, 22, 1, 1, 0),
    (60, 4, 6, 3, 0),
)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ROWS = (0, 1, 7, 129)


def probe(up_to: str) -> dict[str, Any]:
    started = time.monotonic()
    report: dict[str, Any] = {"hooks": load_plugins()}
    wanted = list(LEVELS)[: list(LEVELS).index(up_to) + 1]
    modules = [LEVELS[level] for level in wanted]
    if up_to == "server":
        modules.append(overrides.UPDATER)  # imported late, by the workers
    errors = import_errors(modules)
    reached = list(itertools.takewhile(lambda level: LEVELS[level] not in errors, wanted))
    report |= {"level": reached[-1] if reached else "none", "errors": errors}
    if "router" in reached:
        report |= {
            "not_live": not_live(complete="server" in reached),
            "ids_finished_by": overrides.ids_finished().by,
            "cases": tally(CASES, lambda case: check_case(case), lambda case: case.name),
            "sweep": tally(sweep(), lambda point: check_point(*point), str),
            "ids": tally(finishing(), lambda point: check_finished(*point), str),
            "not_ours": [d.detail for d in ledger.decisions if d.backend == "upstream"],
        }
    if "model" in reached:
        probe_gate.publish_server_args()
        forms = probe_gate.gate_forms()
        report["gate"] = tally(forms, lambda form: probe_gate.check_gate(*form), str)
    return report | {"seconds": round(time.monotonic() - started, 1)}


def load_plugins() -> str:
    """As SGLang does in each of its processes; returns what went wrong."""
    try:
        from sglang.srt.plugins import load_plugins

        load_plugins()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def import_errors(modules: list[str]) -> dict[str, str]:
    """The first module that does not import, and why."""
    for module in modules:
        try:
            importlib.import_module(module)
        except BaseException as error:
            text = str(error).strip().splitlines() or [""]
            return {module: f"{type(error).__name__}: {text[-1]}"}
    return {}


def not_live(*, complete: bool) -> list[str]:
    """Targets that SGLang's own calls would not reach; complete: modules must be loaded."""
    return [
        target.path
        for target in overrides.targets()
        if (complete or target.module in sys.modules)
        and not (target.module in sys.modules and overrides.INSTALLED.reaches(target))
    ]


def tally(
    points: Any, check: Callable[[Any], str | None], name: Callable[[Any], str]
) -> dict[str, Any]:
    """How many were checked, and those that failed, with the reason."""
    failed, total = {}, 0
    for point in points:
        total += 1
        try:
            reason = check(point)
        except Exception as error:
            line = traceback.extract_tb(error.__traceback__)[-1]
            reason = f"{type(error).__name__}: {error} ({line.filename}:{line.lineno})"
        if reason:
            failed[name(point)] = reason
    return {"total": total, "failed": failed}


def select(logits: Tensor, bias: Tensor, topk: int, **arguments: Any) -> tuple[Tensor, Tensor]:
    """This release's own `select_experts`, called as it wants to be.

    arguments: of the router, and valid_rows and dispatch_info for what comes after it.
    """
    router = sys.modules[LEVELS["router"]]
    shared = arguments.pop("num_fused_shared_experts", 0)
    keywords = {
        "layer_id": 0,
        "num_token_non_padded": arguments.pop("valid_rows", None),
        "expert_location_dispatch_info": arguments.pop("dispatch_info", None),
    }
    config = {"renormalize": True, "num_expert_group": 1, "topk_group": 1, **arguments}
    if "shared_experts" in {field.name for field in dataclasses.fields(router.TopKConfig)}:
        config["shared_experts"] = router.SharedExpertsConfig(num_fused_shared_experts=shared)
    else:
        config["num_fused_shared_experts"] = shared
    known = inspect.signature(router.select_experts).parameters
    output = router.select_experts(
        torch.zeros(logits.shape[0], 16),
        logits,
        router.TopKConfig(top_k=topk, use_grouped_topk=True, correction_bias=bias, **config),
        **{name: value for name, value in keywords.items() if name in known},
    )
    return output.topk_weights, output.topk_ids


def check_case(case: Case) -> str | None:
    weights, ids = select(case.logits, case.bias, len(case.ids), **case.arguments)
    if ids.tolist() != [list(case.ids)] * case.logits.shape[0]:
        return f"ids {ids.tolist()}, expected {list(case.ids)}"
    if case.weights is not None:
        expected = torch.tensor([case.weights]).expand_as(weights)
        if not torch.allclose(weights, expected, rtol=1e-5, atol=0):
            return f"weights {weights.tolist()}, expected {list(case.weights)}"
    return None


def sweep() -> Iterator[tuple[tuple[int, ...], torch.dtype, int]]:
    yield from itertools.product(SHAPES, DTYPES, ROWS)


def check_point(shape: tuple[int, ...], dtype: torch.dtype, rows: int) -> str | None:
    E, K, G, TG, S = shape
    generator = torch.Generator().manual_seed(E + rows)
    logits = torch.randn(rows, E, generator=generator).to(dtype)
    bias = torch.randn(E, generator=generator) / 10
    weights, ids = select(
        logits,
        bias,
        K,
        num_expert_group=G,
        topk_group=TG,
        num_fused_shared_experts=S,
        routed_scaling_factor=2.5,
        apply_routed_scaling_factor_on_output=bool(rows % 2),
    )
    spec = RouterSpec(E, K, G, TG, S, True, 2.5, bool(rows % 2), logits_dtype=dtype)
    return find_mismatch(weights, ids, logits, bias, spec)


# 8 logical experts, 10 physical: 2 and 5 have a second replica.
FIRST = torch.tensor([4, 0, 9, 1, 5, 7, 2, 3])
REPLICAS = torch.stack((FIRST, torch.tensor([4, 0, 6, 1, 5, 8, 2, 3])), dim=1)
PADDED_FROM = 5


def finishing() -> Iterator[tuple[str | None, int, int | None]]:
    """How ids are dispatched, shared slots, valid rows of 8."""
    yield from itertools.product((None, "static", "dynamic"), (0, 1), (None, 0, PADDED_FROM, 8))


def check_finished(algorithm: str | None, shared: int, valid: int | None) -> str | None:
    router = sys.modules[LEVELS["router"]]
    E, K, rows = len(FIRST), 3, 8
    logits = torch.randn(rows, E, generator=torch.Generator().manual_seed(3))
    if valid is not None:
        logits[valid:] = torch.nan
    info = algorithm and router.ExpertLocationDispatchInfo(
        ep_dispatch_algorithm=algorithm,
        partial_logical_to_rank_dispatch_physical_map=FIRST,
        partial_logical_to_all_physical_map=REPLICAS,
        partial_logical_to_all_physical_map_num_valid=torch.tensor([1, 1, 2, 1, 1, 2, 1, 1]),
        num_physical_experts=10,
    )
    weights, ids = select(
        logits,
        torch.zeros(E),
        K + shared,
        num_fused_shared_experts=shared,
        valid_rows=None if valid is None else torch.tensor(valid),
        dispatch_info=info,
    )
    spec = RouterSpec(E, K + shared, num_fused_shared_experts=shared)
    want_weights, logical = reference_topk(logits, torch.zeros(E), spec)
    last = rows if valid is None else valid
    if (ids.shape, ids.dtype) != ((rows, K + shared), torch.int32):
        return f"ids are {ids.dtype} {list(ids.shape)}"
    if ids[last:].tolist() != [[-1] * (K + shared)] * (rows - last):
        return f"padded rows are {ids[last:].tolist()}, expected -1"
    if ids[:last, K:].tolist() != [list(range(E, E + shared))] * last:
        return f"shared slots are {ids[:last, K:].tolist()}"
    if not torch.allclose(weights[:last], want_weights[:last], rtol=1e-5, atol=0):
        return f"weights {weights[:last].tolist()}, expected {want_weights[:last].tolist()}"
    allowed = {
        None: logical[:last, :K, None],
        "static": FIRST[logical[:last, :K].long()][..., None],
        "dynamic": REPLICAS[logical[:last, :K].long()],
    }[algorithm]
    if not (ids[:last, :K, None] == allowed).any(dim=2).all():
        return f"ids {ids[:last, :K].tolist()}, expected of {allowed.tolist()}"
    return None


if __name__ == "__main__":
    print("PROBED", json.dumps(probe(sys.argv[1])))
