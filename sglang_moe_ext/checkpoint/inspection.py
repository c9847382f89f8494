"""Inspect one checkpoint: its files, its configuration, then the router of every layer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sglang_moe_ext.checkpoint import estimate
from sglang_moe_ext.checkpoint.config import ConfigError
from sglang_moe_ext.checkpoint.findings import NOTE, PROBLEM, Finding, LayerReport, Report
from sglang_moe_ext.checkpoint.folder import Folder, open_folder
from sglang_moe_ext.checkpoint.router import Router, read_router
from sglang_moe_ext.checkpoint.routing import (
    Routing,
    routed_layers,
    routing_of,
    surplus_routers,
    unwrap,
)
from sglang_moe_ext.checkpoint.tensors import Floats

# Rounding the gate logits to bfloat16, as stock SGLang does outside CUDA, moves 3 % of
# tokens; a bias whose rounding moves fewer than this is not what makes a model route wrongly.
MATERIAL_SHARE = 0.01

_SIGNIFICAND_BITS = {"BF16": 8, "F16": 11}


def inspect_checkpoint(path: str | Path) -> Report:
    """Inspect a local checkpoint, a directory or a single .safetensors file.

    Reads headers, and of the tensors only norms, gates and biases. Whatever is wrong with the
    checkpoint is in the report; nothing is raised for it.
    """
    return inspect_folder(open_folder(Path(path)))


def inspect_folder(folder: Folder) -> Report:
    routing = describe(folder)
    report = Report(folder.path, folder.files, folder.size_bytes, routing, findings=folder.findings)
    if routing is None:
        return report
    for layer in routed_layers(routing, folder.entries):
        router = read_router(folder, routing, layer)
        report.findings.extend(router.findings)
        if not (layer.is_mtp and router.is_empty):
            row = _row(router, routing)
            report.layers.append(row)
            report.findings.extend(_judge_precision(router, row))
    report.findings.extend(_surplus(folder, routing))
    report.findings.extend(_worst_rounding(report.layers))
    return report


def describe(folder: Folder) -> Routing | None:
    """The routing of an opened folder, or None and one more finding in it."""
    if folder.config is None:
        return None
    try:
        return routing_of(unwrap(folder.config))
    except ConfigError as error:
        folder.problem(
            f"config.json {error.key}",
            error.found,
            error.expected,
            "correct config.json; what is not recognised is not checked",
        )
    return None


def stored_bits(dtype: str, bias: Floats) -> int | None:
    """Bits of significand that a finite bias has left, None if it is float32 throughout."""
    if dtype != "F32" or (bias == bias[0]).all():
        return _SIGNIFICAND_BITS.get(dtype)
    if np.array_equal(bias, estimate.round_to_bfloat16(bias)):
        return _SIGNIFICAND_BITS["BF16"]
    with np.errstate(over="ignore"):
        narrow = bias.astype(np.float16)
    return _SIGNIFICAND_BITS["F16"] if np.array_equal(bias, narrow) else None


def _row(router: Router, routing: Routing) -> LayerReport:
    gate, entry, bias = router.gate, router.bias_entry, router.bias
    row = LayerReport(
        router.layer.label,
        gate_dtype=gate.dtype if gate else None,
        gate_shape=gate.shape if gate else None,
        gate_quantized=router.gate_quantized,
        bias_dtype=entry.dtype if entry else None,
        bias_shape=entry.shape if entry else None,
        bias=bias,
    )
    if bias is None or entry is None:
        return row
    finite = bias[np.isfinite(bias)]
    row.bias_nonfinite = bias.size - finite.size
    if finite.size:
        row.bias_low, row.bias_high = float(finite.min()), float(finite.max())
        row.bias_distinct = np.unique(finite).size
        row.bias_distinct_bf16 = np.unique(estimate.round_to_bfloat16(finite)).size
    if row.bias_nonfinite:
        return row
    bits = stored_bits(entry.dtype, bias)
    row.bias_rounded = bits is not None
    if router.weight is not None and bias.size == routing.num_experts:
        scores = estimate.simulated_scores(router.weight, router.norm, routing)
        row.moved_by_rounding = estimate.moved_by_rounding(scores, bias, routing, bits)
    return row


def _judge_precision(router: Router, row: LayerReport) -> Iterator[Finding]:
    """Has the bias been rounded on its way here, and does it matter? Is it zero?"""
    if router.bias is None or row.bias_nonfinite:
        return
    if not router.bias.any():
        yield Finding(
            row.layer,
            NOTE,
            router.bias_name,
            "all values are 0",
            "a trained bias",
            "restore it, unless the model was trained without",
        )
    elif row.bias_rounded:
        is_material = row.moved_by_rounding is None or row.moved_by_rounding >= MATERIAL_SHARE
        effect = f"{MATERIAL_SHARE:.0%} of tokens or more" if is_material else "few tokens"
        how = f"{row.bias_dtype}" if row.bias_dtype != "F32" else "F32 holding only 16-bit values"
        yield Finding(
            row.layer,
            PROBLEM if is_material else NOTE,
            router.bias_name,
            f"{how}: its rounding error sends {effect} to other experts",
            "F32, never rounded",
            "restore it in float32 from the original; trained in 16 bits, it is as good as it gets",
        )


def _worst_rounding(rows: list[LayerReport]) -> Iterator[Finding]:
    exact = [(row.moved_by_rounding or 0, row) for row in rows if not row.bias_rounded]
    share, worst = max(exact, key=lambda pair: pair[0], default=(0, None))
    if worst and share >= MATERIAL_SHARE:
        yield Finding(
            worst.layer,
            NOTE,
            "correction bias",
            f"as bfloat16 it would send {share:.1%} of tokens to other experts",
            "float32 wherever it goes",
            "do not cast it when converting, quantising or serving",
        )


def _surplus(folder: Folder, routing: Routing) -> Iterator[Finding]:
    for number, name in surplus_routers(routing, folder.entries):
        yield Finding(
            number,
            PROBLEM,
            name,
            "a router in a layer that should have none",
            f"{routing.layers} layers and the routers that config.json announces",
            "use the config.json that belongs to this checkpoint",
        )
