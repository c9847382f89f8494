"""The served model against transformers: same tokens, same experts, and stock beside it.

    python test/registered/server/test_against_transformers.py -s    prints the four numbers

In float32 the whole model is compared. In bfloat16 the two differ before they route, so
transformers' router module is given the hidden states that reached the gate in the worker.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
import torch
from huggingface import HuggingFace
from plain_cpu.serving import Server
from torch import Tensor

from sglang_moe_ext.ci import register_cpu_ci, run_file

register_cpu_ci(est_time=300, suite="base-a-test-cpu")

pytestmark = pytest.mark.server

ROOT = Path(__file__).parents[3]
PROMPTS = 64
NEW_TOKENS = 32
# Enough experts, close enough to each other, for rounding to show.
SHAPE = ("--experts", "256", "--groups", "8", "--kept-groups", "4", "--topk", "8",
         "--expert-hidden", "32")  # fmt: skip


@dataclass
class Served:
    """What one server answered and, per layer, what its router was given and chose."""

    outputs: list[list[int]]
    hidden_states: dict[int, Tensor]  # layer -> [rows, H]
    experts: dict[int, Tensor]  # layer -> [rows, K]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("v3")
    script = ROOT / "scripts" / "make_checkpoint.py"
    subprocess.run([sys.executable, script, path, *SHAPE], check=True)
    return path


@pytest.fixture(scope="module")
def judge(checkpoint: Path) -> HuggingFace:
    return HuggingFace(checkpoint)


def prompts() -> list[list[int]]:
    """Token ids, 1 to 40 per prompt; 2 and up, so no special tokens."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, 41, (PROMPTS,), generator=generator).tolist()
    return [torch.randint(2, 512, (length,), generator=generator).tolist() for length in lengths]


def serve(checkpoint: Path, folder: Path, *, dtype: str, plugin: bool) -> Served:
    """Answer every prompt, one at a time, so that captured rows stay in order."""
    captured = folder / "captured"
    server = Server(
        checkpoint,
        folder / "server.log",
        arguments=("--dtype", dtype, "--disable-radix-cache"),
        environment={
            "SGLANG_MOE_EXT": str(int(plugin)),
            "SGLANG_MOE_EXT_STRICT": "1",
            "PLAIN_CPU_CAPTURE": str(captured),
        },
    )
    with server:
        warm_up = {path.name for path in captured.glob("*.pt")}
        outputs = [generate(server, prompt) for prompt in prompts()]
    calls = [torch.load(p) for p in sorted(captured.glob("*.pt")) if p.name not in warm_up]
    layers = sorted({call["layer_id"] for call in calls})

    def rows(name: str, layer: int) -> Tensor:
        return torch.cat([call[name] for call in calls if call["layer_id"] == layer])

    return Served(
        outputs,
        {layer: rows("hidden_states", layer) for layer in layers},
        {layer: rows("ids", layer) for layer in layers},
    )


def generate(server: Server, prompt: list[int]) -> list[int]:
    sampling = {"temperature": 0, "max_new_tokens": NEW_TOKENS, "ignore_eos": True}
    body = json.dumps({"input_ids": prompt, "sampling_params": sampling}).encode()
    request = Request(f"{server.url}/generate", body, {"Content-Type": "application/json"})
    with urlopen(request, timeout=120) as answer:
        output: list[int] = json.load(answer)["output_ids"]
    return output


def equal_sets(ours: dict[int, Tensor], theirs: dict[int, Tensor]) -> float:
    """Share of (token, layer) pairs with the same set of experts, in percent."""
    same = []
    for layer, ids in theirs.items():
        assert ours[layer].shape == ids.shape, f"layer {layer}: {ours[layer].shape} rows captured"
        same.append((ours[layer].long().sort(dim=1).values == ids.sort(dim=1).values).all(dim=1))
    return 100 * torch.cat(same).double().mean().item()


@pytest.fixture(scope="module")
def judged(judge: HuggingFace) -> tuple[list[list[int]], dict[int, Tensor]]:
    """transformers' own tokens, and its experts on them; the last token is never fed."""
    outputs = [judge.generate(prompt, NEW_TOKENS) for prompt in prompts()]
    passes = [judge.experts(p + o[:-1]) for p, o in zip(prompts(), outputs, strict=True)]
    return outputs, {layer: torch.cat([p[layer] for p in passes]) for layer in judge.routers}


def same_outputs(ours: list[list[int]], theirs: list[list[int]]) -> int:
    return sum(a == b for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("plugin", [True, False], ids=["plugin", "stock"])
def test_float32_end_to_end(
    checkpoint: Path,
    judged: tuple[list[list[int]], dict[int, Tensor]],
    tmp_path: Path,
    plugin: bool,
) -> None:
    served = serve(checkpoint, tmp_path, dtype="float32", plugin=plugin)
    outputs, experts = judged
    prompts_equal = same_outputs(served.outputs, outputs)
    share = equal_sets(served.experts, experts)
    name = "plugin" if plugin else "stock"
    print(f"\nfloat32, {name}: {prompts_equal} of {PROMPTS} prompts with the same tokens, "
          f"{share:.3f} % of (token, layer) expert sets equal")  # fmt: skip
    if plugin:
        assert prompts_equal == PROMPTS
        assert share >= 99.9


@pytest.mark.parametrize("plugin", [True, False], ids=["plugin", "stock"])
def test_bfloat16_router(
    checkpoint: Path, judge: HuggingFace, tmp_path: Path, plugin: bool
) -> None:
    served = serve(checkpoint, tmp_path, dtype="bfloat16", plugin=plugin)
    experts = {layer: judge.route(layer, h) for layer, h in served.hidden_states.items()}
    share = equal_sets(served.experts, experts)
    pairs = sum(len(ids) for ids in experts.values())
    name = "plugin" if plugin else "stock"
    print(f"\nbfloat16, {name}: {share:.3f} % of {pairs} (token, layer) expert sets equal")
    assert pairs >= 2 * PROMPTS * NEW_TOKENS
    if plugin:
        assert share >= 99.9
    else:
        assert share < 99.9, "rounding no longer shows in stock: choose a harder shape"


if __name__ == "__main__":
    run_file(__file__)
