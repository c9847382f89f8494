"""Which operation serves which model on the simulated XPU, and is it exact? As Markdown:

python test/sim_xpu/table.py
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from sim_xpu import is_simulated, sim_environment
from sim_xpu.cases.shapes import INSTALLATIONS, SHAPES, Shape

TOKENS = 257
NOT_SERVED = "-"


def markdown() -> str:
    """A row per model, a column per set of kernel variants."""
    columns = [_column(installation) for installation in INSTALLATIONS]
    header = ["model", "E/K", *(i.replace(",", " ") for i in INSTALLATIONS)]
    lines = [_row(header), _row(["---"] * len(header))]
    for index, shape in enumerate(SHAPES):
        groups = f" g{shape.groups} tg{shape.kept}" if shape.groups > 1 else ""
        size = f"{shape.experts}/{shape.topk}{groups}"
        lines.append(_row([shape.model, size, *(column[index] for column in columns)]))
    lines.append("")
    lines.append(
        f"Simulated XPU, no Intel hardware took part. Exact: the ids of the reference for "
        f"{TOKENS} random tokens, weights within 1e-5. A dash: no operation of these versions "
        f"takes the shape, a portable router serves it."
    )
    return "\n".join(lines)


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _column(installation: str) -> list[str]:
    run = subprocess.run(
        [sys.executable, __file__],
        env=sim_environment(variant=installation),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(run.stdout)


def _cell(shape: Shape) -> str:
    import torch

    from sglang_moe_ext.ops import xpu_router
    from sglang_moe_ext.ops.compare import find_mismatch
    from sglang_moe_ext.ops.spec import RouterSpec

    spec = RouterSpec(
        shape.experts,
        shape.topk,
        shape.groups,
        shape.kept,
        routed_scaling_factor=2.5,
        apply_routed_scaling_factor_on_output=True,
        device_type="xpu",
    )
    if xpu_router.supports(spec) is not None:
        return NOT_SERVED
    generator = torch.Generator().manual_seed(shape.experts)
    logits = 2 * torch.randn(TOKENS, shape.experts, generator=generator)
    bias = shape.bias_offset + 0.3 * torch.rand(shape.experts, generator=generator)
    prepared = xpu_router.prepare(spec)
    mismatch = find_mismatch(*prepared.run(logits.to("xpu"), bias.to("xpu")), logits, bias, spec)
    operation = prepared.detail.removeprefix("sgl_kernel.").partition(" ")[0]
    return f"`{operation}` {'exact' if mismatch is None else 'WRONG: ' + mismatch}"


if __name__ == "__main__":
    print(json.dumps([_cell(shape) for shape in SHAPES]) if is_simulated() else markdown())
