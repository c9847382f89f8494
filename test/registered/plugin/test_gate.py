"""Our gate over a made one: float32 logits also where the kernels that it defers to round."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from sglang_moe_ext.ci import register_cpu_ci, run_file
from sglang_moe_ext.gate import ON_GPU, make_gate
from sglang_moe_ext.loading import CheckpointError
from sglang_moe_ext.parameters import routing_parameters

register_cpu_ci(est_time=4, suite="base-a-test-cpu")

EXPERTS, HIDDEN = 8, 32


class HostGate(nn.Module):
    """Stands for SGLang's gate on a GPU, which no machine without one can run."""

    def __init__(self, config: SimpleNamespace) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(EXPERTS, HIDDEN).bfloat16(), requires_grad=False)
        self.e_score_correction_bias = None
        self.logits_dtype = config.logits_dtype

    def forward(self, hidden_states: Tensor) -> Tensor:
        return nn.functional.linear(hidden_states, self.weight).to(self.logits_dtype)


@pytest.mark.parametrize("logits_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_logits_are_float32_whatever_the_gpu_kernel_emits(
    logits_dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate_class = make_gate(HostGate, confirm=lambda: None)
    monkeypatch.setattr(gate_class, "_why_left_to_host", lambda self, hidden_states: ON_GPU)
    gate = gate_class(SimpleNamespace(logits_dtype=logits_dtype))
    hidden_states = torch.randn(5, HIDDEN).bfloat16()
    logits = gate(hidden_states)
    assert logits.dtype == torch.float32
    if logits_dtype == torch.float32:
        assert torch.equal(logits, HostGate.forward(gate, hidden_states)), "computed twice"
    else:
        exact = hidden_states.double() @ gate.weight.double().T
        torch.testing.assert_close(logits.double(), exact, rtol=1e-5, atol=1e-5)


def test_a_weight_packed_for_amx_is_left_to_the_host() -> None:
    gate = make_gate(HostGate, confirm=lambda: None)(SimpleNamespace(logits_dtype=torch.bfloat16))
    hidden_states = torch.randn(5, HIDDEN).bfloat16()
    assert gate(hidden_states).dtype == torch.float32
    gate.use_intel_amx_backend = True
    assert gate(hidden_states).dtype == torch.bfloat16


def test_its_parameters_refuse_what_does_not_fit() -> None:
    gate = make_gate(HostGate, confirm=lambda: None)(SimpleNamespace(logits_dtype=torch.float32))
    with pytest.raises(CheckpointError, match=r"gate.weight: has shape \[3\], expected \[8, 32\]"):
        gate.weight.weight_loader(gate.weight, torch.zeros(3))
    assert [each.name for each in routing_parameters(gate)] == ["weight"]


if __name__ == "__main__":
    run_file(__file__)
