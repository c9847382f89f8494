"""An online update through HTTP: the next token is routed with the new gate and bias."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
import torch
from plain_cpu.serving import Server
from safetensors.torch import load_file
from test_support.defects import make_defective

from sglang_moe_ext.ci import register_cpu_ci, run_file
from sglang_moe_ext.ops.reference import reference_topk
from sglang_moe_ext.ops.spec import RouterSpec

register_cpu_ci(est_time=60, suite="base-a-test-cpu")

pytestmark = pytest.mark.server

ROOT = Path(__file__).parents[3]
SPEC = RouterSpec(16, 4, 4, 2)


def make(path: Path, *arguments: str) -> Path:
    script = ROOT / "scripts" / "make_checkpoint.py"
    subprocess.run([sys.executable, script, path, *arguments], check=True)
    return path


def post(server: Server, route: str, body: dict[str, object]) -> dict[str, object]:
    headers = {"Content-Type": "application/json"}
    request = Request(f"{server.url}/{route}", json.dumps(body).encode(), headers)
    with urlopen(request, timeout=120) as answer:
        reply: dict[str, object] = json.load(answer)
    return reply


def generate(server: Server, captured: Path) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    """Per layer the hidden states and experts of one request."""
    before = set(captured.glob("*.pt"))
    sampling = {"temperature": 0, "max_new_tokens": 8, "ignore_eos": True}
    post(server, "generate", {"input_ids": [5, 6, 7, 8], "sampling_params": sampling})
    calls = [torch.load(path) for path in sorted(set(captured.glob("*.pt")) - before)]
    return {
        layer: tuple(  # type: ignore[misc]
            torch.cat([call[name] for call in calls if call["layer_id"] == layer])
            for name in ("hidden_states", "ids")
        )
        for layer in {call["layer_id"] for call in calls}
    }


def experts_by_reference(checkpoint: Path, layer: int, hidden: torch.Tensor) -> list[list[int]]:
    tensors = load_file(checkpoint / "model.safetensors")
    gate = f"model.layers.{layer}.mlp.gate"
    logits = hidden.float() @ tensors[f"{gate}.weight"].float().T
    bias = tensors[f"{gate}.e_score_correction_bias"]
    return reference_topk(logits, bias, SPEC)[1].sort(dim=1).values.tolist()


def test_update_from_disk(tmp_path: Path) -> None:
    old, new = make(tmp_path / "old"), make(tmp_path / "new", "--seed", "1")
    captured = tmp_path / "captured"
    server = Server(
        old,
        tmp_path / "server.log",
        arguments=("--dtype", "float32", "--disable-radix-cache"),
        environment={"SGLANG_MOE_EXT_STRICT": "1", "PLAIN_CPU_CAPTURE": str(captured)},
    )
    with server:
        first = generate(server, captured)
        reply = post(server, "update_weights_from_disk", {"model_path": str(new)})
        assert reply["success"], reply
        second = generate(server, captured)

        broken = make_defective(new, tmp_path, "bias too short")
        request = {"model_path": str(broken)}
        with pytest.raises(Exception, match="400"):
            post(server, "update_weights_from_disk", request)
        shutil.rmtree(broken)
        third = generate(server, captured)

    for layers, checkpoint in ((first, old), (second, new)):
        assert sorted(layers) == [1, 2]
        for layer, (hidden, ids) in layers.items():
            found = ids.sort(dim=1).values.tolist()
            assert found == experts_by_reference(checkpoint, layer, hidden)
    for layer, (hidden, ids) in second.items():
        assert ids.sort(dim=1).values.tolist() != experts_by_reference(old, layer, hidden)
        assert torch.equal(third[layer][1], ids), "a refused update changed the routing"


if __name__ == "__main__":
    run_file(__file__)
