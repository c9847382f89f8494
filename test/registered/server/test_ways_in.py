"""Every way in which a server loads its weights at the start: checked, and routed rightly."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from plain_cpu.serving import Server, ServerError
from safetensors.torch import load_file, save_file
from test_support.defects import BIAS, GATE, SHARDS, split
from test_support.updates import by_reference, generate
from torch import Tensor

from sglang_moe_ext.ci import register_cpu_ci, run_file
from sglang_moe_ext.ops.spec import RouterSpec

register_cpu_ci(est_time=180, suite="base-a-test-cpu", nightly=True)

pytestmark = pytest.mark.server

ROOT = Path(__file__).parents[3]
SPEC = RouterSpec(16, 4, 4, 2)


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("healthy") / "checkpoint"
    subprocess.run([sys.executable, ROOT / "scripts" / "make_checkpoint.py", path], check=True)
    return path


def check_routing(path: Path, folder: Path, weights: Mapping[str, Tensor], *arguments: str) -> None:
    """Serve `path`; every token must go where the reference sends it with `weights`."""
    server = Server(
        path,
        folder / "server.log",
        arguments=("--dtype", "float32", *arguments),
        environment={
            "SGLANG_MOE_EXT_STRICT": "1",
            "PLAIN_CPU_CAPTURE": str(folder / "captured"),
        },
    )
    with server:
        routed = generate(server, folder / "captured")
    assert sorted(routed) == [1, 2]
    for layer, (hidden, ids) in routed.items():
        assert ids == by_reference(weights, layer, hidden, SPEC)


@pytest.mark.parametrize("threads", [0, 4])
def test_shards(healthy: Path, tmp_path: Path, threads: int) -> None:
    """One thread after another, and SGLang's multi-threaded load."""
    path = tmp_path / "shards"
    shutil.copytree(healthy, path)
    split(path)
    options = {"enable_multithread_load": bool(threads), "num_threads": threads}
    options = options if threads else {"enable_multithread_load": False}
    weights = {k: v for shard in SHARDS for k, v in load_file(path / shard).items()}
    check_routing(path, tmp_path, weights, "--model-loader-extra-config", json.dumps(options))


def test_dummy_weights(healthy: Path, tmp_path: Path) -> None:
    """No file is read; SGLang draws every parameter anew from one seed."""
    path = tmp_path / "hollow"
    shutil.copytree(healthy, path, ignore=shutil.ignore_patterns("*.safetensors"))
    weights = {}
    for layer in (1, 2):
        for name, shape in ((GATE, (16, 128)), (BIAS, (16,))):
            random = torch.Generator().manual_seed(1234)
            drawn = torch.empty(shape).uniform_(-1e-3, 1e-3, generator=random)
            weights[name.replace(".1.", f".{layer}.")] = drawn
    check_routing(path, tmp_path, weights, "--load-format", "dummy")


SAVE = """
import sys, sglang
if __name__ == "__main__":
    engine = sglang.Engine(
        model_path=sys.argv[1], device="cpu", dtype="float32", attention_backend="torch_native",
        disable_overlap_schedule=True, max_total_tokens=4096,
    )
    engine.save_sharded_model(path=sys.argv[2], pattern=None, max_size=None)
    engine.shutdown()
"""


@pytest.fixture(scope="module")
def sharded_state(healthy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Saved by SGLang from the healthy checkpoint, a file per rank."""
    folder = tmp_path_factory.mktemp("sharded")
    path = folder / "state"
    shutil.copytree(healthy, path, ignore=shutil.ignore_patterns("*.safetensors"))
    script = folder / "save.py"
    script.write_text(SAVE)
    subprocess.run(
        [sys.executable, script, healthy, path],
        env={**os.environ, "SGLANG_PLATFORM": "plain_cpu"},
        check=True,
        timeout=500,
    )
    return path


def test_sharded_state(healthy: Path, sharded_state: Path, tmp_path: Path) -> None:
    weights = load_file(healthy / "model.safetensors")
    check_routing(sharded_state, tmp_path, weights, "--load-format", "sharded_state")


def test_sharded_state_with_a_broken_bias(sharded_state: Path, tmp_path: Path) -> None:
    """SGLang copies it without `load_weights`, and without a look."""
    path = tmp_path / "broken"
    shutil.copytree(sharded_state, path)
    (file,) = path.glob("*.safetensors")
    tensors = load_file(file)
    tensors[BIAS][3] = torch.nan
    save_file(tensors, file)
    server = Server(path, tmp_path / "server.log", arguments=("--load-format", "sharded_state"))
    with pytest.raises(ServerError), server:
        pass
    assert f"{BIAS} ({file.name}): 1 of 16 values are not finite" in server.log.read_text()


if __name__ == "__main__":
    run_file(__file__)
