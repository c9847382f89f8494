"""Inspect finds every made defect, and nothing in healthy checkpoints."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_support.defects import DEFECTS, FILE_DEFECTS, make_defective
from test_support.made_checkpoints import (
    BIAS,
    EXPERTS,
    HIDDEN,
    PLANS,
    make_config,
    make_healthy,
    make_hollow_giant,
    make_tensors,
    write,
    write_index,
)
from torch import Tensor

from sglang_moe_ext.checkpoint.findings import PROBLEM, Finding, Report
from sglang_moe_ext.checkpoint.inspection import inspect_checkpoint
from sglang_moe_ext.ci import register_cpu_ci, run_file

register_cpu_ci(est_time=13, suite="base-a-test-cpu")

GATE_2 = "model.layers.2.mlp.gate.weight"
BIAS_2 = f"model.layers.2.{BIAS}"

Change = Callable[[dict[str, Tensor]], object]


def problems(report: Report) -> list[Finding]:
    return [finding for finding in report.findings if finding.severity == PROBLEM]


def only_problem(report: Report) -> Finding:
    (finding,) = problems(report)
    return finding


def inspect_changed(tmp_path: Path, change: Change) -> Report:
    """A healthy DeepSeek-V3 with one change to its tensors."""
    tensors = make_tensors("deepseek_v3")
    change(tensors)
    return inspect_checkpoint(write(tmp_path, make_config("deepseek_v3"), tensors))


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("model_type", PLANS)
def test_healthy(tmp_path: Path, model_type: str, shards: int) -> None:
    report = inspect_checkpoint(make_healthy(tmp_path, model_type, shards))
    assert problems(report) == []
    assert report.healthy
    assert len(report.layers) == len(PLANS[model_type].layers)
    assert report.files == shards
    routing = report.routing
    assert (routing.num_experts, routing.topk) == (EXPERTS, 4)
    assert routing.has_bias == (PLANS[model_type].bias is not None)
    for row in report.layers:
        assert (row.gate_dtype, row.gate_shape) == ("BF16", (EXPERTS, HIDDEN))
        if routing.has_bias:
            assert row.bias_dtype == "F32"
            assert row.bias_distinct == EXPERTS
            assert 0 <= row.moved_by_rounding < 0.05


def test_facts_of_a_layer(tmp_path: Path) -> None:
    bias = torch.linspace(6.8, 7.1, EXPERTS)  # bfloat16 has steps of 1/32 here
    report = inspect_changed(tmp_path, lambda tensors: tensors.update({BIAS_2: bias}))
    row = report.layers[1]
    assert row.layer == "2"
    assert (row.bias_low, row.bias_high) == (bias.min().item(), bias.max().item())
    assert row.bias_distinct == EXPERTS
    assert row.bias_distinct_bf16 == bias.bfloat16().unique().numel() == 10
    assert row.bias_nonfinite == 0
    assert not row.bias_rounded


def test_missing_bias(tmp_path: Path) -> None:
    finding = only_problem(inspect_changed(tmp_path, lambda tensors: tensors.pop(BIAS_2)))
    assert (finding.layer, finding.subject, finding.found) == ("2", BIAS_2, "no such tensor")
    assert "uninitialised" in finding.remedy


@pytest.mark.parametrize(
    "name", ["mlp.gate.bias", "mlp.e_score_correction_bias", "mlp.gate.expert_bias"]
)
def test_misnamed_bias(tmp_path: Path, name: str) -> None:
    stray = f"model.layers.2.{name}"
    report = inspect_changed(tmp_path, lambda t: t.update({stray: t.pop(BIAS_2)}))
    finding = only_problem(report)
    assert finding.subject == BIAS_2
    assert stray in finding.found
    assert finding.remedy.startswith(f"rename {stray}")


def test_second_bias_is_a_note(tmp_path: Path) -> None:
    stray = "model.layers.2.mlp.gate.bias"
    report = inspect_changed(tmp_path, lambda t: t.update({stray: t[BIAS_2].clone()}))
    assert report.healthy
    assert stray in [finding.subject for finding in report.findings]


@pytest.mark.parametrize("shape", [(1, EXPERTS), (EXPERTS // 2,), (EXPERTS + 1,), (0,), ()])
def test_bias_shape(tmp_path: Path, shape: tuple[int, ...]) -> None:
    report = inspect_changed(tmp_path, lambda t: t.update({BIAS_2: torch.rand(shape)}))
    finding = only_problem(report)
    assert (finding.layer, finding.subject) == ("2", BIAS_2)
    assert finding.found == f"shape {list(shape)}"
    assert f"[{EXPERTS}]" in finding.expected


def test_ernie_bias_must_have_a_row(tmp_path: Path) -> None:
    tensors = make_tensors("ernie4_5_moe")
    name = "model.layers.2.mlp.moe_statics.e_score_correction_bias"
    tensors[name] = tensors[name].flatten()
    report = inspect_checkpoint(write(tmp_path, make_config("ernie4_5_moe"), tensors))
    assert f"[1, {EXPERTS}]" in only_problem(report).expected


@pytest.mark.parametrize("through", [torch.bfloat16, torch.float16], ids=str)
def test_rounded_bias(tmp_path: Path, through: torch.dtype) -> None:
    """Also where it was widened to float32 again: the values tell."""
    bias = torch.linspace(6.8, 7.1, EXPERTS).to(through)
    shares = []
    for name, stored in (("as it is", bias), ("widened", bias.float())):
        report = inspect_changed(tmp_path / name, lambda t, b=stored: t.update({BIAS_2: b}))
        assert [row.bias_rounded for row in report.layers] == [False, True, False, False]
        assert only_problem(report).subject == BIAS_2
        assert "float32" in only_problem(report).remedy
        shares.append(report.layers[1].moved_by_rounding)
    assert shares[0] == shares[1] > 0


def test_rounding_without_effect_is_a_note(tmp_path: Path) -> None:
    bias = torch.linspace(-1e-3, 1e-3, EXPERTS).bfloat16()
    report = inspect_changed(tmp_path, lambda t: t.update({BIAS_2: bias}))
    assert report.layers[1].moved_by_rounding < 0.01
    assert report.healthy
    assert any("few tokens" in finding.found for finding in report.findings)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", [BIAS_2, GATE_2])
def test_not_finite(tmp_path: Path, name: str, value: float) -> None:
    report = inspect_changed(tmp_path, lambda t: t[name].view(-1)[3:5].fill_(value))
    finding = only_problem(report)
    assert finding.subject == name
    assert finding.found.startswith("2 of ")
    assert str(value) in finding.found
    assert report.layers[1].bias_nonfinite == (2 if name == BIAS_2 else 0)
    assert report.layers[1].moved_by_rounding is None


def test_integer_bias(tmp_path: Path) -> None:
    report = inspect_changed(tmp_path, lambda t: t.update({BIAS_2: torch.arange(EXPERTS)}))
    assert only_problem(report).found == "I64"


def test_norm_weight_counts(tmp_path: Path) -> None:
    """A norm that shrinks the logits leaves the choice to the bias, rounded or not."""
    norm = "model.layers.2.post_attention_layernorm.weight"
    bias = torch.linspace(0.1, 0.9, EXPERTS)
    shares = []
    for scale in (1.0, 1e-4):
        changes = {BIAS_2: bias, norm: torch.full((HIDDEN,), scale)}
        report = inspect_changed(tmp_path / str(scale), lambda t, c=changes: t.update(c))
        shares.append(report.layers[1].moved_by_rounding)
    assert shares[0] > shares[1] == 0


def test_zero_bias_is_a_note(tmp_path: Path) -> None:
    report = inspect_changed(tmp_path, lambda t: t[BIAS_2].zero_())
    assert report.healthy
    assert "all values are 0" in [finding.found for finding in report.findings]


def test_a_constant_bias_has_lost_nothing(tmp_path: Path) -> None:
    report = inspect_changed(tmp_path, lambda t: t[BIAS_2].fill_(0.5))
    assert not report.layers[1].bias_rounded


def test_a_gate_with_a_scale_beside_it(tmp_path: Path) -> None:
    """SGLang would not apply the scale, whatever the type of the weight."""
    scale = GATE_2.replace("weight", "weight_scale_inv")
    report = inspect_changed(tmp_path, lambda t: t.update({scale: torch.ones(1, 1)}))
    finding = only_problem(report)
    assert finding.subject == GATE_2
    assert finding.found.endswith("with weight_scale_inv: quantised")


@pytest.mark.parametrize("scale", [None, "weight_scale_inv", "weight_scale"])
def test_fp8_gate(tmp_path: Path, scale: str | None) -> None:
    def quantise(tensors: dict[str, Tensor]) -> None:
        tensors[GATE_2] = tensors[GATE_2].to(torch.float8_e4m3fn)
        if scale:
            tensors[GATE_2.replace("weight", scale)] = torch.ones(1, 1)

    report = inspect_changed(tmp_path, quantise)
    finding = only_problem(report)
    assert finding.subject == GATE_2
    assert finding.found == f"F8_E4M3 {f'with {scale}' if scale else 'without a scale'}: quantised"
    assert report.layers[1].gate_quantized
    assert report.layers[1].moved_by_rounding is None


def test_packed_gate(tmp_path: Path) -> None:
    packed = GATE_2 + "_packed"
    report = inspect_changed(
        tmp_path, lambda t: t.update({packed: t.pop(GATE_2).view(torch.int32)})
    )
    assert packed in only_problem(report).found


def test_gate_missing(tmp_path: Path) -> None:
    finding = only_problem(inspect_changed(tmp_path, lambda tensors: tensors.pop(GATE_2)))
    assert (finding.subject, finding.found) == (GATE_2, "no such tensor")


def test_gate_of_zeros(tmp_path: Path) -> None:
    finding = only_problem(inspect_changed(tmp_path, lambda tensors: tensors[GATE_2].zero_()))
    assert (finding.subject, finding.found) == (GATE_2, "all values are 0")


def test_gate_of_another_model(tmp_path: Path) -> None:
    report = inspect_changed(tmp_path, lambda t: t.update({GATE_2: torch.ones(16, HIDDEN)}))
    assert only_problem(report).found == f"shape [16, {HIDDEN}]"
    assert f"[{EXPERTS}, {HIDDEN}]" in only_problem(report).expected


def test_extra_layers(tmp_path: Path) -> None:
    def add_layer(tensors: dict[str, Tensor]) -> None:
        for name in (GATE_2, BIAS_2):
            tensors[name.replace(".2.", ".5.")] = tensors[name].clone()

    finding = only_problem(inspect_changed(tmp_path, add_layer))
    assert finding.layer == "5"
    assert "4 layers" in finding.expected


def test_router_in_a_dense_layer(tmp_path: Path) -> None:
    report = inspect_changed(
        tmp_path, lambda t: t.update({GATE_2.replace(".2.", ".0."): t[GATE_2].clone()})
    )
    assert only_problem(report).layer == "0"


def test_mtp_layer(tmp_path: Path) -> None:
    """Announced and absent is usual; half of it is not."""
    whole = inspect_checkpoint(make_healthy(tmp_path / "whole"))
    assert [row.layer for row in whole.layers] == ["1", "2", "3", "4 mtp"]

    def drop(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.startswith("model.layers.4.")]:
            del tensors[name]

    absent = inspect_changed(tmp_path / "absent", drop)
    assert absent.healthy
    assert [row.layer for row in absent.layers] == ["1", "2", "3"]

    half = inspect_changed(tmp_path / "half", lambda t: t.pop(f"model.layers.4.{BIAS}"))
    assert only_problem(half).layer == "4 mtp"


def test_truncated_file(tmp_path: Path) -> None:
    file = make_healthy(tmp_path) / "model.safetensors"
    size = file.stat().st_size
    os.truncate(file, size - 1000)
    finding, *others = problems(inspect_checkpoint(tmp_path))
    assert finding.subject == "model.safetensors"
    assert f"truncated at {size - 1000:,}" in finding.found
    assert f"{size:,}" in finding.expected
    assert others == []  # what the hole swallowed is not reported a second time


def test_absent_shard(tmp_path: Path) -> None:
    make_healthy(tmp_path, shards=3)
    shard = "model-00002-of-00003.safetensors"
    (tmp_path / shard).unlink()
    finding = only_problem(inspect_checkpoint(tmp_path))
    assert (finding.subject, finding.found) == (shard, "no such file")


def test_index_and_shards_of_different_checkpoints(tmp_path: Path) -> None:
    make_healthy(tmp_path)
    names = dict.fromkeys([*make_tensors("deepseek_v3"), "model.layers.9.mlp.gate.weight"])
    write_index(tmp_path, {name: "model.safetensors" for name in names})
    assert "model.layers.9.mlp.gate.weight" in only_problem(inspect_checkpoint(tmp_path)).found


@pytest.mark.parametrize(
    "head",
    [b"", b"\x01", b"\xff" * 16, (20).to_bytes(8, "little") + b"{" * 20, b"PK\x03\x04" + b"0" * 9],
    ids=["empty", "a byte", "huge length", "not JSON", "a zip"],
)
def test_corrupt_header(tmp_path: Path, head: bytes) -> None:
    make_healthy(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(head)
    assert only_problem(inspect_checkpoint(tmp_path)).subject == "model.safetensors"


def test_header_longer_than_the_file(tmp_path: Path) -> None:
    make_healthy(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((1000).to_bytes(8, "little") + b"{}")
    assert only_problem(inspect_checkpoint(tmp_path)).found.endswith("the header claims 1,000")


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [4], "data_offsets": [16, 0]},
        {"dtype": "F32", "shape": [4], "data_offsets": [-16, 0]},
        {"dtype": "F32", "shape": [-2, -2], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [4]},
        [],
    ],
    ids=["wrong length", "backwards", "negative offset", "negative shape", "no offsets", "a list"],
)
def test_corrupt_entry(tmp_path: Path, entry: object) -> None:
    make_healthy(tmp_path)
    raw = json.dumps({"model.norm.weight": entry}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(16))
    assert "header that cannot be read" in only_problem(inspect_checkpoint(tmp_path)).found


def test_corrupt_index(tmp_path: Path) -> None:
    make_healthy(tmp_path, shards=2)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": []')
    report = inspect_checkpoint(tmp_path)
    assert only_problem(report).subject == "model.safetensors.index.json"
    assert len(report.layers) == 4  # the shards are read all the same


@pytest.mark.parametrize("text", [None, "{", "[]"], ids=["absent", "cut off", "a list"])
def test_config_unreadable(tmp_path: Path, text: str | None) -> None:
    make_healthy(tmp_path)
    (tmp_path / "config.json").unlink()
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    assert only_problem(inspect_checkpoint(tmp_path)).subject.endswith("config.json")


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"model_type": "gpt_oss"}, "model_type"),
        ({"model_type": "deepseek_v4"}, "model_type"),
        ({"scoring_func": "sqrtsoftplus"}, "scoring function"),
        ({"n_routed_experts": None}, "n_routed_experts"),
        ({"num_experts_per_tok": "8"}, "num_experts_per_tok"),
        ({"num_experts_per_tok": 17}, "num_experts_per_tok"),
        ({"n_group": 5}, "n_group, topk_group"),
        ({"topk_group": 5}, "n_group, topk_group"),
        ({"num_hidden_layers": None}, "num_hidden_layers"),
        ({"num_hidden_layers": "4"}, "num_hidden_layers"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"num_hidden_layers": 1}, "layers"),
        ({"first_k_dense_replace": 1.5}, "first_k_dense_replace"),
        ({"routed_scaling_factor": [1.0, 2.0]}, "routed_scaling_factor"),
    ],
    ids=str,
)
def test_config_not_recognised(tmp_path: Path, changes: dict[str, object], key: str) -> None:
    config = make_config("deepseek_v3") | changes
    config = {name: value for name, value in config.items() if value is not None}
    report = inspect_checkpoint(write(tmp_path, config, make_tensors("deepseek_v3")))
    assert only_problem(report).subject == f"config.json {key}"
    assert report.layers == []


@pytest.mark.parametrize(
    "value",
    ["x", -1, 2.5, 1e300, float("nan"), float("inf"), [], [1, 2], {}, True, 0, None],
    ids=repr,
)
@pytest.mark.parametrize("model_type", ["deepseek_v3", "nemotron_h", "ernie4_5_moe"])
def test_nonsense_in_config_is_reported(tmp_path: Path, model_type: str, value: object) -> None:
    """No value of any key makes inspect raise, or look at nothing and call it healthy."""
    folder = make_healthy(tmp_path, model_type)
    for key in make_config(model_type):
        (folder / "config.json").write_text(json.dumps(make_config(model_type) | {key: value}))
        report = inspect_checkpoint(folder)
        assert report.layers or not report.healthy, key


@pytest.mark.parametrize(
    ("model_type", "key"),
    [("minimax_m2", "use_routing_bias"), ("bailing_moe", "moe_router_enable_expert_bias")],
)
def test_config_switches_the_bias_off(tmp_path: Path, model_type: str, key: str) -> None:
    config = make_config(model_type, **{key: None})
    report = inspect_checkpoint(write(tmp_path, config, make_tensors(model_type)))
    assert {finding.found for finding in problems(report)} == {"a correction bias"}


def test_no_such_path(tmp_path: Path) -> None:
    assert only_problem(inspect_checkpoint(tmp_path / "absent")).found.startswith("no such")


def test_no_safetensors(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(make_config("deepseek_v3")))
    (tmp_path / "pytorch_model.bin").touch()
    assert problems(inspect_checkpoint(tmp_path))[0].found == "pytorch_model.bin"


def test_single_file(tmp_path: Path) -> None:
    file = make_healthy(tmp_path) / "model.safetensors"
    assert inspect_checkpoint(file).healthy
    assert len(inspect_checkpoint(file).layers) == 4


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole model, such as test_refusals.py lets a server load."""
    path = tmp_path_factory.mktemp("served") / "checkpoint"
    script = Path(__file__).parents[3] / "scripts" / "make_checkpoint.py"
    subprocess.run([sys.executable, script, path, "--experts", "64"], check=True)
    return path


@pytest.mark.parametrize("name", [*DEFECTS, *FILE_DEFECTS])
def test_every_defect_that_a_server_meets(served: Path, tmp_path: Path, name: str) -> None:
    assert inspect_checkpoint(served).healthy
    found = problems(inspect_checkpoint(make_defective(served, tmp_path, name)))
    subject = FILE_DEFECTS[name][1] if name in FILE_DEFECTS else r".*\.layers\.1\.mlp\.gate\."
    assert [finding for finding in found if re.search(subject, finding.subject)]
    assert all(finding.remedy for finding in found)


# The whole command; what it took goes to stderr.
MEASURE = """
import atexit, re, runpy, sys, time
from pathlib import Path
def report():
    # Not getrusage, whose maximum a child inherits from the process that started it.
    peak = re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]
    print(time.perf_counter() - start, int(peak) / 1024, "torch" in sys.modules, file=sys.stderr)
start = time.perf_counter()
atexit.register(report)
sys.argv = ["sglang_moe_ext", "inspect", sys.argv[1]]
runpy.run_module("sglang_moe_ext", run_name="__main__")
"""


def test_hundreds_of_shards_in_seconds(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    giant = make_hollow_giant(tmp_path / "giant")
    # One thread: on a machine shared with other tests more of them only spin.
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, giant],
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    seconds, megabytes, imported_torch = done.stderr.split()
    record_property("seconds", seconds)
    record_property("megabytes", megabytes)
    assert "in 300 files" in done.stdout
    assert "cpu: cpu" in done.stdout
    assert done.stdout.endswith("healthy: 58 routers looked at, no problem\n")
    assert imported_torch == "False"
    assert float(seconds) < 10
    assert float(megabytes) < 500


if __name__ == "__main__":
    run_file(__file__)
