"""The correction bias of every layer as a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sglang_moe_ext.checkpoint.findings import Report


def draw_bias(report: Report, file: Path) -> None:
    """Write a heat map of the bias, a row per layer, to `file` (format by its suffix).

    Left: each value minus its layer's median, so that the spread shows beside any offset;
    values not finite are left white. Right: that median, and the share of tokens that the bias
    in bfloat16 moves. Raises ValueError if there is no bias to draw.
    """
    rows = [row for row in report.layers if row.bias is not None and row.bias_low is not None]
    if not rows:
        raise ValueError(f"{report.path} has no correction bias")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width = max(row.bias.size for row in rows if row.bias is not None)
    values = np.full((len(rows), width), np.nan)
    for line, row in zip(values, rows, strict=True):
        if row.bias is not None:
            line[: row.bias.size] = np.where(np.isfinite(row.bias), row.bias, np.nan)
    median = np.nanmedian(values, axis=1)
    spread = values - median[:, None]
    # Outliers are drawn in the end colours instead of washing out the rest.
    limit = float(np.nanpercentile(np.abs(spread), 99.5)) or 1.0

    figure = Figure(figsize=(12, 2.2 + 0.11 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    heat, offset, moved = figure.subplots(1, 3, sharey=True, width_ratios=(8, 1.4, 1.4))
    image = heat.imshow(
        spread, aspect="auto", interpolation="nearest", cmap="RdBu_r", vmin=-limit, vmax=limit
    )
    figure.colorbar(
        image,
        ax=heat,
        location="bottom",
        label="bias minus the median of its layer",
        extend="both",
        aspect=60,
        pad=0.01,
    )
    every = max(1, len(rows) // 16)
    heat.set_yticks(range(0, len(rows), every), [row.layer for row in rows[::every]])
    heat.set(title=f"{report.path.name}: correction bias", xlabel="expert", ylabel="layer")

    lines = np.arange(len(rows))
    offset.plot(median, lines, color="black", marker=".", markersize=3, linewidth=1)
    offset.set(title="median", xlabel="bias")
    shares = [row.moved_by_rounding for row in rows]
    unknown = [line for line, share in enumerate(shares) if share is None]
    moved.barh(lines, [100 * (share or 0) for share in shares], color="firebrick")
    if unknown:
        moved.barh(unknown, 100, color="0.9", hatch="//", edgecolor="0.7", label="unknown")
        moved.legend()
    moved.set(title="moved by rounding", xlabel="% of tokens, estimate", xlim=(0, 100))
    for axes in (offset, moved):
        axes.grid(axis="x", color="0.9")
        axes.set_axisbelow(True)
    figure.savefig(file, dpi=110)
