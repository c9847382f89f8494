"""A copy beside its origin: what was rounded, quantised or lost on the way."""

from __future__ import annotations

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
from torch import Tensor

from sglang_moe_ext.checkpoint.comparison import compare_checkpoints
from sglang_moe_ext.checkpoint.findings import PROBLEM, Finding, Report
from sglang_moe_ext.ci import register_cpu_ci, run_file

register_cpu_ci(est_time=5, suite="base-a-test-cpu")

GATE_2 = "model.layers.2.mlp.gate.weight"
BIAS_2 = f"model.layers.2.{BIAS}"


def problems(report: Report) -> list[Finding]:
    return [finding for finding in report.findings if finding.severity == PROBLEM]


def compare_changed(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], object], **config: object
) -> Report:
    """A changed copy of a healthy DeepSeek-V3 against it."""
    base = make_healthy(tmp_path / "base", shards=2)
    tensors = make_tensors("deepseek_v3")
    change(tensors)
    copy = write(tmp_path / "copy", make_config("deepseek_v3", **config), tensors)
    return compare_checkpoints(copy, base)


@pytest.mark.parametrize("model_type", PLANS)
def test_copy_is_healthy(tmp_path: Path, model_type: str) -> None:
    paths = [make_healthy(tmp_path / name, model_type) for name in ("copy", "base")]
    report = compare_checkpoints(*paths)
    assert report.healthy
    assert report.base == paths[1]
    assert len(report.comparison) == len(PLANS[model_type].layers)
    for row in report.comparison:
        assert row.gate == "same"
        assert row.bias == ("same" if PLANS[model_type].bias else "absent in both")
        assert row.moved == 0


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32], ids=str)
def test_bias_saved_in_bfloat16(tmp_path: Path, stored: torch.dtype) -> None:
    report = compare_changed(
        tmp_path, lambda t: t.update({BIAS_2: t[BIAS_2].bfloat16().to(stored)})
    )
    finding = next(f for f in problems(report) if f.found == "the base's bias rounded to bfloat16")
    assert (finding.layer, finding.subject) == ("2", BIAS_2)
    assert report.comparison[1].bias.endswith("rounded to bfloat16")
    assert report.comparison[1].bias.startswith("F32 -> BF16") == (stored is torch.bfloat16)


def test_base_rounded_already(tmp_path: Path) -> None:
    """A faithful copy of a rounded bias is not the one that rounded it."""
    tensors = make_tensors("deepseek_v3")
    tensors[BIAS_2] = tensors[BIAS_2].bfloat16().float()
    paths = [write(tmp_path / n, make_config("deepseek_v3"), tensors) for n in ("copy", "base")]
    report = compare_checkpoints(*paths)
    assert report.comparison[1].bias == "same"
    assert "the base's bias rounded to bfloat16" not in [f.found for f in report.findings]


def test_quantised_gate(tmp_path: Path) -> None:
    def quantise(tensors: dict[str, Tensor]) -> None:
        tensors[GATE_2] = tensors[GATE_2].to(torch.float8_e4m3fn)
        tensors[GATE_2 + "_scale_inv"] = torch.ones(1, 1)

    report = compare_changed(tmp_path, quantise)
    (finding,) = problems(report)
    assert (finding.layer, finding.subject) == ("2", GATE_2)
    assert report.comparison[1].gate == "BF16 -> F8_E4M3, values not comparable"
    assert report.comparison[1].moved is None
    assert {row.gate for row in report.comparison} - {report.comparison[1].gate} == {"same"}


def test_fine_tune(tmp_path: Path) -> None:
    """Other values are what a fine-tune is for: shown, but no problem."""

    def train(tensors: dict[str, Tensor]) -> None:
        tensors[BIAS_2] += 0.25 * torch.arange(EXPERTS) / EXPERTS
        tensors[GATE_2] = tensors[GATE_2].float() * 1.5

    report = compare_changed(tmp_path, train)
    assert report.healthy
    row = report.comparison[1]
    assert row.gate.startswith("BF16 -> F32, differs by up to")
    assert row.bias == "differs by up to 0.24"
    assert 0 < row.moved <= 1


def test_widened_gate(tmp_path: Path) -> None:
    report = compare_changed(tmp_path, lambda t: t.update({GATE_2: t[GATE_2].float()}))
    assert report.healthy
    assert report.comparison[1].gate == "BF16 -> F32, same values"
    assert report.comparison[1].moved == 0


def test_lost_bias(tmp_path: Path) -> None:
    report = compare_changed(tmp_path, lambda tensors: tensors.pop(BIAS_2))
    assert report.comparison[1].bias == "absent"
    assert [finding.subject for finding in problems(report)] == [BIAS_2]


def test_reshaped_bias(tmp_path: Path) -> None:
    report = compare_changed(tmp_path, lambda t: t.update({BIAS_2: torch.rand(EXPERTS - 1)}))
    assert report.comparison[1].bias == f"shape [{EXPERTS}] -> [{EXPERTS - 1}]"
    assert report.comparison[1].moved is None


def test_bias_not_finite(tmp_path: Path) -> None:
    report = compare_changed(tmp_path, lambda tensors: tensors[BIAS_2][3:4].fill_(torch.nan))
    assert report.comparison[1].bias == "not finite"
    assert report.comparison[1].moved is None


def test_routing_changed(tmp_path: Path) -> None:
    report = compare_changed(tmp_path, lambda tensors: None, routed_scaling_factor=1.0)
    (finding,) = problems(report)
    assert finding.subject == "config.json routed_scaling_factor"
    assert (finding.found, finding.expected) == ("1.0", "2.5, as in the base")


def test_other_model(tmp_path: Path) -> None:
    copy = make_healthy(tmp_path / "copy", "deepseek_v3")
    base = make_healthy(tmp_path / "base", "nemotron_h")
    assert not compare_checkpoints(copy, base).healthy


def test_base_is_broken(tmp_path: Path) -> None:
    copy = make_healthy(tmp_path / "copy")
    (finding,) = problems(compare_checkpoints(copy, tmp_path / "absent"))
    assert finding.subject.startswith("base: ")


if __name__ == "__main__":
    run_file(__file__)
