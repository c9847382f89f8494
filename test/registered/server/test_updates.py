"""Online updates through HTTP: the next token is routed with the new weights, a bad one refused.

One server takes them one after another; every test sends its own gates and biases and leaves
the server healthy. PLAIN_CPU_CAPTURE shows what its worker's router was given and chose.

Stock SGLang 0.5.23, as measured with SGLANG_MOE_EXT=0: a NaN bias from a tensor is a success and
the next tokens are others; a bias of a wrong length ends the server; from a process group that
is refused, after what came before it was written.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from plain_cpu.serving import Server
from safetensors.torch import load_file
from test_support.defects import BIAS, GATE, make_defective
from test_support.updates import (
    Routed,
    Tensors,
    by_reference,
    from_distributed,
    from_tensor,
    generate,
    post,
)
from torch import Tensor

from sglang_moe_ext.ci import register_cpu_ci, run_file
from sglang_moe_ext.ops.spec import RouterSpec

register_cpu_ci(est_time=85, suite="base-a-test-cpu")

pytestmark = pytest.mark.server

ROOT = Path(__file__).parents[3]
SPEC = RouterSpec(16, 4, 4, 2)
ROUTING = [name.replace(".1.", f".{layer}.") for layer in (1, 2) for name in (GATE, BIAS)]


def make(path: Path, *arguments: str) -> Path:
    script = ROOT / "scripts" / "make_checkpoint.py"
    subprocess.run([sys.executable, script, path, *arguments], check=True)
    return path


@dataclass
class Served:
    server: Server
    captured: Path
    weights: dict[str, Tensor]

    def route(self) -> Routed:
        return generate(self.server, self.captured)

    def expect(self, weights: Tensors, routed: Routed) -> None:
        """Every token went to the experts that the reference computes from `weights`."""
        assert sorted(routed) == [1, 2]
        for layer, (hidden, ids) in routed.items():
            assert ids == by_reference(weights, layer, hidden, SPEC)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    model = make(folder / "model")
    server = Server(
        model,
        folder / "server.log",
        arguments=("--dtype", "float32", "--disable-radix-cache"),
        environment={
            "SGLANG_MOE_EXT_STRICT": "1",
            "PLAIN_CPU_CAPTURE": str(folder / "captured"),
        },
    )
    with server:
        yield Served(server, folder / "captured", load_file(model / "model.safetensors"))


def new_routing(seed: int) -> dict[str, Tensor]:
    """Other gates and biases; the dtypes as in the checkpoint."""
    random = torch.Generator().manual_seed(seed)
    return {
        name: (
            torch.randn(16, generator=random) / 10
            if name.endswith("bias")
            else (torch.randn(16, 128, generator=random) / 128**0.5).bfloat16()
        )
        for name in ROUTING
    }


def test_from_disk(served: Served, tmp_path: Path) -> None:
    served.expect(served.weights, served.route())
    new = make(tmp_path / "new", "--seed", "1")
    reply = post(served.server, "update_weights_from_disk", {"model_path": str(new)})
    assert reply["success"], reply
    old, served.weights = served.weights, load_file(new / "model.safetensors")
    routed = served.route()
    served.expect(served.weights, routed)
    for layer, (hidden, ids) in routed.items():
        assert ids != by_reference(old, layer, hidden, SPEC)


@pytest.mark.parametrize("name", ["bias too short", "bias NaN"])
def test_from_disk_refused(served: Served, tmp_path: Path, name: str) -> None:
    before = served.route()
    broken = make_defective(make(tmp_path / "new", "--seed", "2"), tmp_path, name)
    reply = post(served.server, "update_weights_from_disk", {"model_path": str(broken)})
    assert not reply["success"]
    assert BIAS in reply["message"]
    shutil.rmtree(broken)
    assert_unchanged(served, before)


Update = Callable[[Server, Tensors], dict[str, Any]]
WAYS: dict[str, Update] = {
    "tensor": from_tensor,
    "tensor, direct": lambda server, tensors: from_tensor(server, tensors, "direct"),
    "distributed": from_distributed,
}


@pytest.mark.parametrize("way", WAYS)
def test_from_memory(served: Served, way: str) -> None:
    new = new_routing(seed=10 + list(WAYS).index(way))
    reply = WAYS[way](served.server, new)
    assert reply["success"], reply
    old, served.weights = served.weights, served.weights | new
    routed = served.route()
    served.expect(served.weights, routed)
    for layer, (hidden, ids) in routed.items():
        assert ids != by_reference(old, layer, hidden, SPEC)


BAD: dict[str, tuple[str, Callable[[Tensor], Tensor], str]] = {
    "shape": (BIAS, lambda bias: bias[:-1].clone(), "has shape [15], expected [16]"),
    "NaN": (BIAS, lambda bias: torch.full_like(bias, torch.nan), "16 of 16 values are not finite"),
    "gate inf": (GATE, lambda gate: gate * torch.inf, "values are not finite"),
    "integers": (BIAS, lambda bias: bias.long(), "stored as int64"),
}


@pytest.mark.parametrize("defect", BAD)
@pytest.mark.parametrize("way", WAYS)
def test_from_memory_refused(served: Served, way: str, defect: str) -> None:
    """The good tensors of a bad update are not written either."""
    before = served.route()
    name, spoil, message = BAD[defect]
    new = new_routing(seed=20)
    reply = WAYS[way](served.server, new | {name: spoil(new[name])})
    assert not reply["success"]
    assert name in reply["message"]
    assert message in reply["message"]
    assert_unchanged(served, before)


def assert_unchanged(served: Served, before: Routed) -> None:
    after = served.route()
    served.expect(served.weights, after)
    for layer, (hidden, ids) in before.items():
        assert torch.equal(after[layer][0], hidden), "a refused update changed the model"
        assert after[layer][1] == ids


if __name__ == "__main__":
    run_file(__file__)
