"""What the command prints, draws and returns."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_support.made_checkpoints import (
    BIAS,
    EXPERTS,
    PLANS,
    make_config,
    make_healthy,
    make_tensors,
    write,
)

from sglang_moe_ext.checkpoint.command import DEVICES, add_inspect_parser, serving_backends
from sglang_moe_ext.checkpoint.routing import routing_of, unwrap
from sglang_moe_ext.ci import register_cpu_ci, run_file

register_cpu_ci(est_time=7, suite="base-a-test-cpu")

Inspect = Callable[..., int]


@pytest.fixture
def inspect() -> Inspect:
    """`inspect` as the command line runs it: arguments to exit code."""
    parser = argparse.ArgumentParser()
    add_inspect_parser(parser.add_subparsers())

    def run(*arguments: object) -> int:
        args = parser.parse_args(["inspect", *map(str, arguments)])
        return args.run(args)

    return run


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    """Every bias rounded, one missing, a second shard of other layers."""
    tensors = make_tensors("deepseek_v3")
    for name in list(tensors):
        if name.endswith(BIAS):
            tensors[name] = (tensors[name] + 7).bfloat16()
    del tensors[f"model.layers.2.{BIAS}"]
    return write(tmp_path / "bad", make_config("deepseek_v3"), tensors, shards=2)


def test_healthy_exits_with_0(
    tmp_path: Path, inspect: Inspect, capsys: pytest.CaptureFixture[str]
) -> None:
    assert inspect(make_healthy(tmp_path)) == 0
    text = capsys.readouterr().out
    assert "deepseek_v3" in text
    assert f"sigmoid + bias, 4 of {EXPERTS} experts, from 2 of 4 groups" in text
    assert "estimated on 512 simulated tokens" in text
    assert text.endswith("healthy: 4 routers looked at, no problem\n")
    assert max(map(len, text.replace(str(tmp_path), "").splitlines())) <= 100


def test_problems_exit_with_1(
    bad: Path, inspect: Inspect, capsys: pytest.CaptureFixture[str]
) -> None:
    assert inspect(bad) == 1
    text = capsys.readouterr().out
    assert "NOT healthy: 4 routers looked at, 2 problems" in text
    # The same problem on several layers is one verdict.
    assert "PROBLEM  layers 1, 3, 4 mtp: model.layers.*.mlp.gate.e_score_correction_bias" in text
    assert "PROBLEM  layer 2: model.layers.2.mlp.gate.e_score_correction_bias" in text
    assert len(re.findall(r"^  remedy    \S", text, re.MULTILINE)) == 2


def test_json(bad: Path, inspect: Inspect, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect(bad, "--json") == 1
    document = json.loads(capsys.readouterr().out)
    assert document["path"] == str(bad)
    assert document["base"] is None
    assert document["healthy"] is False
    assert document["files"] == 2
    assert document["size_bytes"] == sum(file.stat().st_size for file in bad.glob("*.safetensors"))
    assert document["routing"] == {
        "family": "DeepSeek-V3, Kimi-K2",
        "model_type": "deepseek_v3",
        "scoring": "sigmoid",
        "has_bias": True,
        "num_experts": EXPERTS,
        "topk": 4,
        "num_expert_group": 4,
        "topk_group": 2,
        "renormalize": True,
        "routed_scaling_factor": 2.5,
        "hidden_size": 64,
        "layers": 4,
        "moe_layers": [1, 2, 3],
        "reaches_router": True,
    }
    assert [row["layer"] for row in document["layers"]] == ["1", "2", "3", "4 mtp"]
    assert document["layers"][0] | {"bias_low": 0, "bias_high": 0, "moved_by_rounding": 0} == {
        "layer": "1",
        "gate_dtype": "BF16",
        "gate_shape": [EXPERTS, 64],
        "gate_quantized": False,
        "bias_dtype": "BF16",
        "bias_shape": [EXPERTS],
        "bias_low": 0,
        "bias_high": 0,
        "bias_distinct": 7,
        "bias_distinct_bf16": 7,
        "bias_nonfinite": 0,
        "bias_rounded": True,
        "moved_by_rounding": 0,
    }
    assert document["layers"][1]["bias_dtype"] is None
    assert {"layer", "severity", "subject", "found", "expected", "remedy"} == set(
        document["findings"][0]
    )
    assert "simulated" in document["estimate"]


def test_json_survives_infinities(
    tmp_path: Path, inspect: Inspect, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = make_tensors("glm4_moe")
    tensors[f"model.layers.2.{BIAS}"].fill_(torch.inf)
    assert inspect(write(tmp_path, make_config("glm4_moe"), tensors), "--json") == 1
    document = json.loads(capsys.readouterr().out)
    assert document["layers"][1]["bias_low"] is None
    assert document["layers"][1]["bias_nonfinite"] == EXPERTS


def test_compare(
    tmp_path: Path, bad: Path, inspect: Inspect, capsys: pytest.CaptureFixture[str]
) -> None:
    base = make_healthy(tmp_path / "base")
    assert inspect(bad, "--compare", base) == 1
    text = capsys.readouterr().out
    assert f"base        {base}" in text
    assert "F32 -> BF16, differs by up to 7" in text
    assert inspect(bad, "--compare", base, "--json") == 1
    rows = json.loads(capsys.readouterr().out)["comparison"]
    assert [row["bias"] for row in rows][1] == "absent"
    assert set(rows[0]) == {"layer", "gate", "bias", "moved"}


def test_serving_backends(
    tmp_path: Path, inspect: Inspect, capsys: pytest.CaptureFixture[str]
) -> None:
    inspect(make_healthy(tmp_path / "v3"), "--json")
    serving = json.loads(capsys.readouterr().out)["serving"]
    assert set(serving) == set(DEVICES)
    assert all(serving.values())

    inspect(make_healthy(tmp_path / "ernie", "ernie4_5_moe"), "--json")
    serving = json.loads(capsys.readouterr().out)["serving"]
    assert serving == {"any": "SGLang itself, whose softmax + bias routing this model uses"}


@pytest.mark.parametrize("model_type", ["deepseek_v3", "ernie4_5_moe"])
def test_plot(tmp_path: Path, inspect: Inspect, model_type: str) -> None:
    image = pytest.importorskip("matplotlib.image")
    plot = tmp_path / "bias.png"
    assert inspect(make_healthy(tmp_path, model_type), "--plot", plot) == 0
    pixels = image.imread(plot)
    height, width, _ = pixels.shape
    assert width > 1000
    assert height > 200
    # The heat map fills most of the width with many colours, none of them grey.
    colours = {tuple(pixel) for row in pixels[:, : width // 2, :3] for pixel in row}
    assert len([c for c in colours if max(c) - min(c) > 0.1]) > 30


def test_plot_without_bias(
    tmp_path: Path, inspect: Inspect, capsys: pytest.CaptureFixture[str]
) -> None:
    plot = tmp_path / "bias.png"
    assert inspect(make_healthy(tmp_path, "deepseek_v2"), "--plot", plot) == 2
    assert "no correction bias" in capsys.readouterr().err
    assert not plot.exists()


ABSENT = """
import argparse, sys
sys.modules[sys.argv[1]] = None
from sglang_moe_ext.checkpoint.command import add_inspect_parser
parser = argparse.ArgumentParser()
add_inspect_parser(parser.add_subparsers())
args = parser.parse_args(["inspect", *sys.argv[2:]])
sys.exit(args.run(args))
"""


def run_without(library: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", ABSENT, library, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_without_torch(tmp_path: Path) -> None:
    path = make_healthy(tmp_path)
    done = run_without("torch", path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == run_without("nothing", path).stdout


@pytest.mark.parametrize("library", ["numba", "sgl_kernel"])
def test_without_a_library_of_a_backend(tmp_path: Path, library: str) -> None:
    done = run_without(library, make_healthy(tmp_path, "glm4_moe"))
    assert done.returncode == 0, done.stderr
    assert len(re.findall(f"{library}.*, which is not installed here", done.stdout)) == 1


@pytest.mark.parametrize("model_type", PLANS)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_backend_named_is_the_one_that_serves(model_type: str, device: str) -> None:
    """XPU is told by the same rules, in test/sim_xpu."""
    from sglang_moe_ext.ops import choose
    from sglang_moe_ext.ops.spec import RouterSpec

    routing = routing_of(unwrap(make_config(model_type)))
    spec = RouterSpec(
        routing.num_experts,
        routing.topk,
        routing.num_expert_group,
        routing.topk_group,
        device_type=device,
    )
    candidates = choose.candidates(device)
    serving = next(name for name in candidates if choose._load(name).supports(spec) is None)
    if routing.reaches_router:
        assert serving_backends(routing)[device].startswith(serving)


@pytest.mark.parametrize("library", ["numpy", "matplotlib"])
def test_without_a_library(tmp_path: Path, library: str) -> None:
    done = run_without(library, make_healthy(tmp_path), "--plot", tmp_path / "bias.png")
    assert done.returncode == 2
    assert done.stderr == (
        f"inspect needs {library}, which is not installed: pip install 'sglang-moe-ext[inspect]'\n"
    )


if __name__ == "__main__":
    run_file(__file__)
