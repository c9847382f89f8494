"""Compare a checkpoint with its origin: what became of every gate and bias?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sglang_moe_ext.checkpoint.estimate import (
    round_to_bfloat16,
    selected,
    share_differing,
    simulated_scores,
)
from sglang_moe_ext.checkpoint.findings import PROBLEM, Finding, LayerComparison, Report
from sglang_moe_ext.checkpoint.folder import open_folder
from sglang_moe_ext.checkpoint.inspection import describe, inspect_folder
from sglang_moe_ext.checkpoint.router import Router, read_router
from sglang_moe_ext.checkpoint.routing import Routing, routed_layers
from sglang_moe_ext.checkpoint.tensors import Entry, Floats

_ROUTING_FIELDS = (
    "kind",
    "num_experts",
    "topk",
    "num_expert_group",
    "topk_group",
    "renormalize",
    "routed_scaling_factor",
    "layers",
)


def compare_checkpoints(path: str | Path, base: str | Path) -> Report:
    """Inspect `path`, and compare its routers with those of `base`, layer by layer."""
    folder, origin = open_folder(Path(path)), open_folder(Path(base))
    report = inspect_folder(folder)
    report.base = origin.path
    routing, base_routing = report.routing, describe(origin)
    report.findings.extend(
        replace(finding, subject=f"base: {finding.subject}") for finding in origin.findings
    )
    if routing is None or base_routing is None:
        return report
    report.findings.extend(_routing_differences(routing, base_routing))
    originals = {layer.label: layer for layer in routed_layers(base_routing, origin.entries)}
    for layer in routed_layers(routing, folder.entries):
        if layer.label in originals:
            mine = read_router(folder, routing, layer)
            theirs = read_router(origin, base_routing, originals[layer.label])
            if mine.is_empty and theirs.is_empty:
                continue
            report.comparison.append(_compare(mine, theirs, routing))
            if _is_rounded(mine.bias, theirs.bias):
                report.findings.append(_rounded(mine))
    return report


def _routing_differences(mine: Routing, base: Routing) -> Iterator[Finding]:
    for name in _ROUTING_FIELDS:
        found, expected = getattr(mine, name), getattr(base, name)
        if found != expected:
            yield Finding(
                None,
                PROBLEM,
                f"config.json {name}",
                str(found),
                f"{expected}, as in the base",
                "copy the routing keys from the base's config.json",
            )


def _compare(mine: Router, base: Router, routing: Routing) -> LayerComparison:
    return LayerComparison(
        mine.layer.label,
        gate=_change(mine.gate, base.gate, mine.weight, base.weight),
        bias=_change(mine.bias_entry, base.bias_entry, mine.bias, base.bias),
        moved=_moved(mine, base, routing),
    )


def _change(
    entry: Entry | None, base_entry: Entry | None, values: Floats | None, base: Floats | None
) -> str:
    """What became of the base's tensor, in a few words."""
    if entry is None or base_entry is None:
        return "absent in both" if entry is base_entry else ("new" if entry else "absent")
    words = [] if entry.dtype == base_entry.dtype else [f"{base_entry.dtype} -> {entry.dtype}"]
    if values is None or base is None:
        words.append("values not comparable")
    elif values.shape != base.shape:
        words.append(f"shape {list(base_entry.shape)} -> {list(entry.shape)}")
    elif np.array_equal(values, base, equal_nan=True):
        words.append("same" if not words else "same values")
    elif not (np.isfinite(values).all() and np.isfinite(base).all()):
        words.append("not finite")
    elif _is_rounded(values, base):
        words.append("rounded to bfloat16")
    else:
        words.append(f"differs by up to {np.abs(values - base).max():.2g}")
    return ", ".join(words)


def _is_rounded(values: Floats | None, base: Floats | None) -> bool:
    return (
        values is not None
        and base is not None
        and values.shape == base.shape
        and not np.array_equal(values, base)
        and np.array_equal(values, round_to_bfloat16(base))
    )


def _moved(mine: Router, base: Router, routing: Routing) -> float | None:
    one, other = _chosen(mine, routing), _chosen(base, routing)
    return None if one is None or other is None else share_differing(one, other)


def _chosen(router: Router, routing: Routing) -> npt.NDArray[np.bool_] | None:
    """The experts of the simulated tokens [T, E], None if the router cannot route."""
    E, weight = routing.num_experts, router.weight
    bias = router.bias if routing.has_bias else np.zeros(E, np.float32)
    if weight is None or weight.shape != (E, routing.hidden_size):
        return None
    if bias is None or bias.size != E or not np.isfinite(bias).all():
        return None
    return selected(simulated_scores(weight, router.norm, routing) + bias, routing)


def _rounded(router: Router) -> Finding:
    return Finding(
        router.layer.label,
        PROBLEM,
        router.bias_name,
        "the base's bias rounded to bfloat16",
        "the base's values",
        "copy it from the base, in float32",
    )
