"""inspect's estimate of what a bfloat16 bias moves, against what it moves in a served model.

The estimate is a share of 512 simulated tokens and the measurement one of 1024 served tokens:
at a share of 0.5 their standard errors are 0.022 and 0.016, of the difference 0.027. Three
of them are 0.08; the rest of the tolerance is for hidden states that are not Gaussian.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from plain_cpu.serving import Server
from safetensors.torch import load_file, save_file
from test_support.defects import FILE
from test_support.updates import Routed, by_reference, generate

from sglang_moe_ext.checkpoint.inspection import inspect_checkpoint
from sglang_moe_ext.ci import register_cpu_ci, run_file
from sglang_moe_ext.ops.spec import RouterSpec

register_cpu_ci(est_time=130, suite="base-a-test-cpu", nightly=True)

pytestmark = pytest.mark.server

ROOT = Path(__file__).parents[3]
SPEC = RouterSpec(64, 8, 4, 2)
TOLERANCE = 0.1
LAYERS = (1, 2, 3)
PROMPT = torch.randint(2, 512, (1024,), generator=torch.Generator().manual_seed(3)).tolist()


def serve(path: Path, folder: Path, **environment: str) -> Routed:
    captured = folder / "captured"
    server = Server(
        path,
        folder / "server.log",
        arguments=("--dtype", "float32"),
        environment={"PLAIN_CPU_CAPTURE": str(captured), **environment},
    )
    with server:
        return generate(server, captured, PROMPT, new_tokens=1)


def share_moved(one: list[list[int]], other: list[list[int]]) -> float:
    return sum(a != b for a, b in zip(one, other, strict=True)) / len(one)


@pytest.mark.parametrize("spread", [0.02, 0.1])
def test_estimate(tmp_path: Path, spread: float) -> None:
    """A bias at an offset of 7, where bfloat16 has steps of 1/32 (ROUTING_FAILURES F13)."""
    path = tmp_path / "exact"
    shape = ["--experts", "64", "--topk", "8", "--layers", "4"]
    bias = ["--bias-offset", "7", "--bias-spread", str(spread)]
    script = ROOT / "scripts" / "make_checkpoint.py"
    subprocess.run([sys.executable, script, path, *shape, *bias], check=True)
    exact = load_file(path / FILE)
    rounded = {
        name: tensor.bfloat16() if name.endswith("correction_bias") else tensor
        for name, tensor in exact.items()
    }
    estimates = {int(row.layer): row.moved_by_rounding for row in inspect_checkpoint(path).layers}

    served = serve(path, tmp_path)
    assert sorted(served) == sorted(estimates) == list(LAYERS)
    for layer, (hidden, ids) in served.items():
        assert len(ids) == len(PROMPT)
        assert ids == by_reference(exact, layer, hidden, SPEC)
        measured = share_moved(ids, by_reference(rounded, layer, hidden, SPEC))
        print(f"spread {spread}, layer {layer}: {estimates[layer]:.3f} estimated, {measured:.3f}")
        assert measured > 0.1
        assert estimates[layer] == pytest.approx(measured, abs=TOLERANCE)

    save_file(rounded, path / FILE, metadata={"format": "pt"})
    again = serve(path, tmp_path / "rounded", SGLANG_MOE_EXT_BIAS="warn")
    # Before the first routed layer nothing differs, so its tokens can be compared one by one.
    first = LAYERS[0]
    assert torch.equal(again[first][0], served[first][0])
    share = share_moved(served[first][1], again[first][1])
    assert estimates[first] == pytest.approx(share, abs=TOLERANCE)
    # A copy that was rounded before is judged by the copy alone.
    afterwards = {row.layer: row for row in inspect_checkpoint(path).layers}
    assert afterwards[str(first)].moved_by_rounding == pytest.approx(share, abs=TOLERANCE)


if __name__ == "__main__":
    run_file(__file__)
