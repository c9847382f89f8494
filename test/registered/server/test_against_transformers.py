"""The served model against transformers: same tokens, same experts, and stock beside it.

    python test/registered/server/test_against_transformers.py -s    prints the four numbers

In float32 the whole model is compared. In bfloat16 the two differ before they route, so
transformers' router module is given the hidden states that reached the gate in the worker.
"""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
import torch
from plain_cpu.serving import Server
from test_support.huggingface import HuggingFace
from torch import Tensor

from sglang_moe_ext.ci import register_cpu_ci, run_file

register_cpu_ci(est_time=188, suite="base-a-test-cpu")

pytestmark = pytest.mark.server

ROOT = Path(__file__).parents[3]
PROMPTS = 64
AT_ONCE = 16
NEW_TOKENS = 32
# Enough experts, close enough to each other, for rounding to show.
SHAPE = ("--experts", "256", "--groups", "8", "--kept-groups", "4", "--topk", "8",
         "--expert-hidden", "32")  # fmt: skip


@dataclass
class Served:
    """What one server answered and, per prompt and layer, what its router saw and chose."""

    outputs: list[list[int]]
    hidden_states: list[dict[int, Tensor]]  # layer -> [tokens, H]
    experts: list[dict[int, Tensor]]  # layer -> [tokens, K]


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
    """Answer every prompt, several at once."""
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
    with server, ThreadPoolExecutor(AT_ONCE) as pool:
        outputs = list(pool.map(lambda prompt: generate(server, prompt), prompts()))
    sequences = read_sequences(captured)
    # The last token of an output is never fed to the model.
    rows = [sequences[tuple(p + o[:-1])] for p, o in zip(prompts(), outputs, strict=True)]
    return Served(
        outputs,
        [{layer: torch.stack([h for h, _ in each]) for layer, each in row.items()} for row in rows],
        [{layer: torch.stack([i for _, i in each]) for layer, each in row.items()} for row in rows],
    )


def read_sequences(captured: Path) -> dict[tuple[int, ...], dict[int, list[Any]]]:
    """Captured rows by request, told apart by their tokens: layer -> [(hidden, ids), ...]."""
    tokens: dict[tuple[int, int], list[int]] = {}
    rows: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
    finished: list[tuple[list[int], int, list[tuple[Tensor, Tensor]]]] = []
    for path in sorted(captured.glob("*.pt")):
        call = torch.load(path)
        layer = call["layer_id"]
        for row, slot in enumerate(call["slots"].tolist()):
            key = (slot, layer)
            if call["positions"][row] == 0:
                tokens[key], rows[key] = [], []
                finished.append((tokens[key], layer, rows[key]))
            tokens[key].append(int(call["tokens"][row]))
            rows[key].append((call["hidden_states"][row], call["ids"][row]))
    sequences: dict[tuple[int, ...], dict[int, list[Any]]] = {}
    for sequence, layer, each in finished:
        sequences.setdefault(tuple(sequence), {})[layer] = each
    return sequences


def generate(server: Server, prompt: list[int]) -> list[int]:
    sampling = {"temperature": 0, "max_new_tokens": NEW_TOKENS, "ignore_eos": True}
    body = json.dumps({"input_ids": prompt, "sampling_params": sampling}).encode()
    request = Request(f"{server.url}/generate", body, {"Content-Type": "application/json"})
    with urlopen(request, timeout=120) as answer:
        output: list[int] = json.load(answer)["output_ids"]
    return output


def equal_sets(ours: list[dict[int, Tensor]], theirs: list[dict[int, Tensor]]) -> Tensor:
    """For every (token, layer) pair, whether the sets of experts are the same."""
    same = []
    for our_layers, their_layers in zip(ours, theirs, strict=True):
        assert our_layers.keys() == their_layers.keys()
        for layer, ids in their_layers.items():
            found, expected = our_layers[layer].long().sort(dim=1), ids.sort(dim=1)
            same.append((found.values == expected.values).all(dim=1))
    return torch.cat(same)


def percent(same: Tensor) -> float:
    return 100 * same.double().mean().item()


@pytest.mark.parametrize("plugin", [True, False], ids=["plugin", "stock"])
def test_float32_end_to_end(
    checkpoint: Path, judge: HuggingFace, tmp_path: Path, plugin: bool
) -> None:
    served = serve(checkpoint, tmp_path, dtype="float32", plugin=plugin)
    judged = [judge.follow(p, o) for p, o in zip(prompts(), served.outputs, strict=True)]
    same_tokens = sum(same for same, _ in judged)
    share = percent(equal_sets(served.experts, [experts for _, experts in judged]))
    name = "plugin" if plugin else "stock"
    print(f"\nfloat32, {name}: {same_tokens} of {PROMPTS} prompts with the same tokens, "
          f"{share:.3f} % of (token, layer) expert sets equal")  # fmt: skip
    if plugin:
        assert same_tokens == PROMPTS
        assert share >= 99.9


@pytest.mark.parametrize("plugin", [True, False], ids=["plugin", "stock"])
def test_bfloat16_router(
    checkpoint: Path, judge: HuggingFace, tmp_path: Path, plugin: bool
) -> None:
    served = serve(checkpoint, tmp_path, dtype="bfloat16", plugin=plugin)
    experts = [
        {layer: judge.route(layer, hidden) for layer, hidden in layers.items()}
        for layers in served.hidden_states
    ]
    same = equal_sets(served.experts, experts)
    share, pairs = percent(same), same.numel()
    name = "plugin" if plugin else "stock"
    print(f"\nbfloat16, {name}: {share:.3f} % of {pairs} (token, layer) expert sets equal")
    assert pairs >= 2 * PROMPTS * NEW_TOKENS
    if plugin:
        assert share >= 99.9
    else:
        assert share < 99.9, "rounding no longer shows in stock: choose a harder shape"


if __name__ == "__main__":
    run_file(__file__)
