"""A report as text for people and as JSON for programs."""

from __future__ import annotations

import dataclasses
import json
import re
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from sglang_moe_ext.checkpoint.estimate import METHOD
from sglang_moe_ext.checkpoint.findings import PROBLEM, Finding, LayerReport, Report
from sglang_moe_ext.checkpoint.routing import Routing

_WIDTH = 98


def as_json(report: Report) -> str:
    """One object; shares are 0..1, absent facts null, "healthy" the verdict."""
    routing = report.routing
    layers = []
    for row in report.layers:
        fields = {f.name: getattr(row, f.name) for f in dataclasses.fields(row)}
        del fields["bias"]
        layers.append(fields)
    document: dict[str, Any] = {
        "path": str(report.path),
        "base": str(report.base) if report.base else None,
        "healthy": report.healthy,
        "files": report.files,
        "size_bytes": report.size_bytes,
        "routing": _routing_fields(routing) if routing else None,
        "serving": report.serving,
        "layers": layers,
        "comparison": [dataclasses.asdict(row) for row in report.comparison],
        "findings": [dataclasses.asdict(finding) for finding in report.findings],
        "estimate": METHOD,
    }
    return json.dumps(document, indent=2, allow_nan=False)


def _routing_fields(routing: Routing) -> dict[str, Any]:
    names = [f.name for f in dataclasses.fields(routing) if f.name not in ("family", "mtp_paths")]
    return {"family": routing.family.name} | {name: getattr(routing, name) for name in names}


def as_text(report: Report) -> str:
    """Facts first, then one row per layer, then the verdict."""
    parts = [_heading(report)]
    if report.layers:
        parts.append(_layer_table(report.layers))
    if report.comparison:
        parts.append(_comparison_table(report))
    if any(row.moved_by_rounding is not None for row in report.layers):
        parts.append(textwrap.fill(f"moved: {METHOD}", _WIDTH))
    parts.extend(_finding_text(group) for group in _grouped(report.findings))
    parts.append(_verdict(report))
    return "\n\n".join(parts)


def _heading(report: Report) -> str:
    size = report.size_bytes
    amount = f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
    plural = "" if report.files == 1 else "s"
    lines = [f"checkpoint  {report.path}, {amount} in {report.files} file{plural}"]
    if report.base:
        lines.append(f"base        {report.base}")
    routing = report.routing
    if routing:
        E, G, TG = routing.num_experts, routing.num_expert_group, routing.topk_group
        groups = f", from {TG} of {G} groups" if G > 1 else ""
        scale = "renormalised" if routing.renormalize else "not renormalised"
        lines += [
            f"family      {routing.family.name} ({routing.model_type}), {routing.layers} layers",
            f"routing     {routing.kind}, {routing.topk} of {E} experts{groups}, {scale}, "
            f"factor {routing.routed_scaling_factor:g}",
        ]
    labels = ["served by"] + [""] * len(report.serving)
    for label, (device, backend) in zip(labels, report.serving.items(), strict=False):
        line = f"{label:<12}{device}: {backend}"
        lines += textwrap.wrap(line, _WIDTH, subsequent_indent=" " * 14)
    return "\n".join(lines)


def _layer_table(rows: Sequence[LayerReport]) -> str:
    groups = ("", "gate", "", "bias", "", "", "", "", "as bfloat16", "")
    heads = ("layer", "dtype", "shape", "dtype", "lowest", "highest", "distinct", "not finite")
    body = [
        (
            row.layer,
            (row.gate_dtype or "absent") + (" quantised" if row.gate_quantized else ""),
            _shape(row.gate_shape),
            row.bias_dtype or "none",
            _number(row.bias_low),
            _number(row.bias_high),
            _count(row.bias_distinct),
            _count(row.bias_nonfinite if row.bias_dtype else None),
            _count(row.bias_distinct_bf16),
            _percent(row.moved_by_rounding) if row.bias_dtype else "-",
        )
        for row in rows
    ]
    return _table([groups, (*heads, "distinct", "moved"), *body], "<<<<>>>>>>")


def _comparison_table(report: Report) -> str:
    heads = ("layer", "gate, base -> this", "bias, base -> this", "moved")
    body = [(row.layer, row.gate, row.bias, _percent(row.moved)) for row in report.comparison]
    return _table([heads, *body], "<<<>")


def _table(rows: Sequence[Sequence[str]], align: str) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            f"{cell:{side}{width}}" for cell, side, width in zip(row, align, widths, strict=True)
        ).rstrip()
        for row in rows
    )


def _shape(shape: tuple[int, ...] | None) -> str:
    return "x".join(map(str, shape)) if shape else "-"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _count(value: int | None) -> str:
    return "-" if value is None else str(value)


def _percent(share: float | None) -> str:
    return "unknown" if share is None else f"{share:.1%}"


def _grouped(findings: Iterable[Finding]) -> list[list[Finding]]:
    """Findings that differ in nothing but the layer, problems first."""
    groups: dict[tuple[str, ...], list[Finding]] = {}
    for finding in sorted(findings, key=lambda finding: finding.severity != PROBLEM):
        text = (finding.severity, finding.subject, finding.found, finding.expected, finding.remedy)
        key = tuple(_any_layer(part) for part in text)
        groups.setdefault(key, []).append(finding)
    return list(groups.values())


def _any_layer(text: str) -> str:
    return re.sub(r"layers\.\d+\.", "layers.*.", text)


def _finding_text(group: Sequence[Finding]) -> str:
    first = group[0]
    say = _any_layer if len(group) > 1 else str
    layers = [finding.layer for finding in group if finding.layer is not None]
    where = f"layer{'s' if len(layers) > 1 else ''} {_ranges(layers)}: " if layers else ""
    return (
        f"{first.severity.upper():<9}{where}{say(first.subject)}\n"
        f"  found     {say(first.found)}\n"
        f"  expected  {say(first.expected)}\n"
        f"  remedy    {say(first.remedy)}"
    )


def _ranges(labels: Sequence[str]) -> str:
    """["3", "4", "5", "61 mtp"] as "3-5, 61 mtp"."""
    ranges: list[list[str]] = []
    for label in labels:
        last = ranges[-1][-1] if ranges else ""
        if label.isdecimal() and last.isdecimal() and int(label) == int(last) + 1:
            ranges[-1].append(label)
        else:
            ranges.append([label])
    return ", ".join(r[0] if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in ranges)


def _verdict(report: Report) -> str:
    problems = [group for group in _grouped(report.findings) if group[0].severity == PROBLEM]
    checked = f"{len(report.layers)} routers looked at"
    if not problems:
        return f"healthy: {checked}, no problem"
    return f"NOT healthy: {checked}, {len(problems)} problem{'s' if len(problems) > 1 else ''}"
