#!/usr/bin/env python3
"""Draw what `python -m sglang_moe_ext bench --out CSV` measured.

    python scripts/plot_router.py benchmarks/h200.csv

Beside the CSV two pictures appear: NAME-times.png, time against tokens per shape, the floor
drawn in, and NAME-speedup.png, best peer / ours for every shape and number of tokens, those
where we lose included. "Ours" is the fastest of this package's backends.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

OURS, LOSS, FLOOR = "#0b6e4f", "#b3261e", "#9aa0a6"
COLUMNS = 3
# The device's own time where there is one, else the caller's.
HOW = {"graph": "captured graph", "lap": "calls in a row", "call": "a call from Python"}


class Row(NamedTuple):
    shape: str
    tokens: int
    router: str
    role: str
    us: float


def main(arguments: Sequence[str] | None = None) -> None:
    summary, _, details = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", nargs="+", type=Path, help="CSV that `bench --out` wrote")
    for path in parser.parse_args(arguments).results:
        rows, conditions = read(path)
        for name, draw in (("times", draw_times), ("speedup", draw_speedup)):
            picture = path.with_name(f"{path.stem}-{name}.png")
            figure = draw(rows, conditions)
            figure.savefig(picture, dpi=110)
            plt.close(figure)
            print(picture)


def read(path: Path) -> tuple[list[Row], str]:
    """Rows of the measure to compare by, and the conditions as one line."""
    with path.open(newline="") as file:
        table = list(csv.DictReader(file))
    taken = {row["measure"] for row in table}
    measure = next(name for name in HOW if name in taken)
    rows = [
        Row(r["shape"], int(r["tokens"]), r["router"], r["role"], float(r["median_us"]))
        for r in table
        if r["measure"] == measure
    ]
    first = table[0]
    return rows, f"{first['device']}, torch {first['torch']}; median of {HOW[measure]}"


def draw_times(rows: Sequence[Row], conditions: str) -> plt.Figure:
    shapes = list(dict.fromkeys(row.shape for row in rows))
    routers = list(dict.fromkeys((row.router, row.role) for row in rows))
    peers = [name for name, role in routers if role == "peer"]
    figure, axes = plt.subplots(
        math.ceil(len(shapes) / COLUMNS), COLUMNS, figsize=(12, 7), sharex=True, squeeze=False
    )
    for axis, shape in zip(axes.flat, shapes, strict=False):
        for name, role in routers:
            line = sorted((r.tokens, r.us) for r in rows if (r.shape, r.router) == (shape, name))
            style = {
                "ours": {"color": OURS, "linewidth": 2.4, "marker": "o"},
                "floor": {"color": FLOOR, "linestyle": "--"},
                "peer": {"color": f"C{peers.index(name) if role == 'peer' else 0}", "marker": "."},
            }[role]
            if name == "torch":
                style |= {"linewidth": 1.0, "linestyle": ":", "marker": "."}
            if line:
                axis.plot(*zip(*line, strict=True), label=f"{name} ({role})", **style)
        axis.set(title=shape, xscale="log", yscale="log")
        axis.grid(which="major", alpha=0.3)
    for axis in axes[-1]:
        axis.set_xlabel("tokens")
    for axis in axes[:, 0]:
        axis.set_ylabel("µs")
    labels = {
        label: line
        for axis in axes.flat
        for line, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(labels.values(), labels, loc="lower center", ncols=5, frameon=False, fontsize=9)
    figure.suptitle(f"Routing: time of a call ({conditions})", fontsize=11)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    return figure


def draw_speedup(rows: Sequence[Row], conditions: str) -> plt.Figure:
    cells = list(dict.fromkeys((row.shape, row.tokens) for row in rows))
    ratios = {}
    for cell in cells:
        best = {
            role: min(
                (r.us for r in rows if (r.shape, r.tokens, r.role) == (*cell, role)), default=0
            )
            for role in ("ours", "peer")
        }
        if all(best.values()):
            ratios[cell] = best["peer"] / best["ours"]
    mean = math.exp(sum(map(math.log, ratios.values())) / len(ratios))
    shapes = list(dict.fromkeys(shape for shape, _ in ratios))
    figure, axis = plt.subplots(figsize=(12, 4.6))
    ticks: dict[float, str] = {}
    for index, shape in enumerate(shapes):
        group = [(tokens, ratio) for (name, tokens), ratio in ratios.items() if name == shape]
        for place, (tokens, ratio) in enumerate(group):
            x = index + 0.85 * (place / len(group) - 0.5)
            axis.bar(x, ratio, 0.15, color=OURS if ratio >= 1 else LOSS)
            axis.text(x, ratio, f"{ratio:.2f}", ha="center", va="bottom", fontsize=7)
            ticks[x] = str(tokens)
        axis.text(index - 0.08, -0.16, shape, ha="center", transform=axis.get_xaxis_transform())
    axis.axhline(1, color="black", linewidth=0.8)
    axis.set(xticks=list(ticks), ylabel="best peer / ours", yscale="log")
    axis.set_xticklabels(ticks.values(), fontsize=7)
    axis.minorticks_off()
    axis.set_yticks([1, 2, 4, 8], ["1", "2", "4", "8"])
    axis.set_ylim(min(0.8, *ratios.values()) * 0.95, max(ratios.values()) * 1.25)
    axis.set_title(
        f"Times faster than the best peer, by tokens; geometric mean {mean:.2f}\n({conditions})",
        fontsize=11,
    )
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    return figure


if __name__ == "__main__":
    main()
