"""Results as a table to read and as a CSV."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from sglang_moe_ext.bench.result import FAILED, SKIPPED, TIMED, WRONG, Result
from sglang_moe_ext.bench.shapes import Shape

MEASURES = {
    "call": "a call from Python",
    "lap": "16 calls in a row, awaited at their end",
    "graph": "a call in a captured CUDA graph",
}
NAME, ROLE, CELL = 32, 6, 10


def conditions(context: Mapping[str, str], dtype: str, measures: Sequence[str]) -> str:
    """What the figures are, and of which machine."""
    versions = [f"{name} {context[name]}" for name in ("torch", "sglang") if context[name]]
    how = "; ".join(f"{name}: {MEASURES[name]}" for name in measures)
    machine = ", ".join([context["device"], *versions, f"sglang-moe-ext {context['commit']}"])
    return f"{machine}\nmedian µs, {dtype} logits ({how}); * is the automatic choice"


def block(shape: Shape, results: Sequence[Result], chosen: str) -> str:
    """One shape: a row per router that is there, the ratio to the best peer as the last."""
    columns = list(dict.fromkeys((r.measure, r.tokens) for r in results))
    several = len({measure for measure, _ in columns}) > 1
    titles = [f"{n} {measure}" if several else str(n) for measure, n in columns]
    width = max(CELL, 2 + max(map(len, titles)))
    lines = [_line(shape.title, "tokens", titles, width)]
    for name, role in dict.fromkeys((r.router, r.role) for r in results if r.verdict != SKIPPED):
        of_router = {(r.measure, r.tokens): r for r in results if r.router == name}
        mark = " *" if (name, role) == (chosen, "ours") else ""
        lines.append(_line(name + mark, role, [_cell(of_router[c]) for c in columns], width))
    ratios = [_ratio([r for r in results if (r.measure, r.tokens) == c], chosen) for c in columns]
    lines.append(_line(f"{chosen} / best peer", "", ratios, width))
    return "\n".join(lines)


def notes(results: Sequence[Result]) -> Iterator[str]:
    """Why something has no time, each reason once."""
    shapes = {r.shape for r in results}
    for verdict in (WRONG, FAILED, SKIPPED):
        reasons: dict[tuple[str, str], list[Result]] = {}
        for r in results:
            if r.verdict == verdict:
                reasons.setdefault((r.router, r.detail), []).append(r)
        for (router, detail), found in reasons.items():
            where = dict.fromkeys(
                r.shape if verdict == SKIPPED else f"{r.shape}, {r.tokens} tokens" for r in found
            )
            everywhere = verdict == SKIPPED and len(where) == len(shapes)
            places = "" if everywhere else f" ({'; '.join(where)})"
            verdict_text = "WRONG, not timed" if verdict == WRONG else verdict
            yield f"{router} {verdict_text}{places}: {detail[:300]}"


def write_csv(path: Path, results: Sequence[Result], context: Mapping[str, str]) -> None:
    """One line per time."""
    rows = [
        {
            "shape": r.shape,
            "tokens": r.tokens,
            "router": r.router,
            "role": r.role,
            "measure": r.measure,
            **r.timing,
            **context,
        }
        for r in results
        if r.timing
    ]
    if rows:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


def _line(name: str, role: str, cells: Sequence[str], width: int) -> str:
    return (f"{name:{NAME}} {role:{ROLE}}" + "".join(f"{c:>{width}}" for c in cells)).rstrip()


def _cell(result: Result) -> str:
    return _digits(result.median_us) if result.verdict == TIMED else result.verdict


def _ratio(column: Sequence[Result], chosen: str) -> str:
    ours = [r.median_us for r in column if r.timing and (r.router, r.role) == (chosen, "ours")]
    peers = [r.median_us for r in column if r.timing and r.role == "peer"]
    return f"{ours[0] / min(peers):.2f}" if ours and peers else "-"


def _digits(us: float) -> str:
    """Three digits that count."""
    return f"{us:.{2 if us < 10 else 1 if us < 100 else 0}f}"
