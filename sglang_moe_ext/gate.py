"""DeepseekV2MoeGate: SGLang's gate with float32 logits and a float32 bias everywhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sglang_moe_ext import env, ledger
from sglang_moe_ext.ledger import Decision
from sglang_moe_ext.loading import mark_gate_parameter
from sglang_moe_ext.ops.linear import linear_float32

_ROCM = torch.version.hip is not None  # its routers take the logits as its gate gives them
ON_GPU = "SGLang's GPU kernels emit float32 from 16-bit operands"


def make_gate(host_gate: type[nn.Module], confirm: Callable[[], None]) -> type[nn.Module]:
    """The replacement for `MoEGate`, a subclass, so that whatever SGLang reads is there.

    confirm: called whenever a gate is built, so that a router that isn't ours is noticed.
    """
    keeps_model_dtype = env.settings().gate_logits == "model"

    class DeepseekV2MoeGate(host_gate):  # type: ignore[valid-type,misc]
        """Scores every routed expert: logits [T, E] of hidden states [T, H].

        weight: [E, H] in the model's dtype.
        e_score_correction_bias: [E] float32 where `topk_method` is "noaux_tc", else None.
            It takes part in the choice of experts only, and is never trained by gradient.
        """

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            confirm()
            self._decisions: dict[torch.device, Decision] = {}
            prefix = kwargs.get("prefix") or "gate"
            for name, parameter in self.named_parameters():
                mark_gate_parameter(parameter, f"{prefix}.{name}")
            bias = self.e_score_correction_bias
            if bias is not None:
                bias.requires_grad_(False)
                if bias.dtype != torch.float32 and not _ROCM:
                    bias.data = bias.data.float()

        def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            """Logits float32, or in the model's dtype under SGLANG_MOE_EXT_GATE_LOGITS=model.

            Takes whatever the replaced gate takes after `hidden_states` [T, H].
            """
            left_to_host = self._why_left_to_host(hidden_states)
            if not torch.compiler.is_compiling():
                self._count(hidden_states, left_to_host)
            if left_to_host:
                logits: Tensor = super().forward(hidden_states, *args, **kwargs)
                # Up to 0.5.14 they do so for some shapes and few tokens only.
                if left_to_host is not ON_GPU or logits.dtype == torch.float32 or _ROCM:
                    return logits
            return linear_float32(hidden_states, self.weight)

        def _why_left_to_host(self, hidden_states: Tensor) -> str | None:
            if keeps_model_dtype:
                return "SGLANG_MOE_EXT_GATE_LOGITS=model"
            if hidden_states.device.type == "cuda":
                return ON_GPU
            if getattr(self, "use_intel_amx_backend", False):
                return "the weight is packed for AMX"
            return None

        def _count(self, hidden_states: Tensor, left_to_host: str | None) -> None:
            device = hidden_states.device
            decision = self._decisions.get(device)
            if decision is None:
                experts, hidden = self.weight.shape
                decision = self._decisions[device] = _shared_decision(
                    f"{hidden} -> {experts}", device, self.weight.dtype, left_to_host
                )
            decision.calls += 1
            decision.tokens += hidden_states.shape[0]

    return DeepseekV2MoeGate


_shared: dict[tuple[object, ...], Decision] = {}


def _shared_decision(
    shape: str, device: torch.device, dtype: torch.dtype, left_to_host: str | None
) -> Decision:
    """One ledger entry for all layers of a shape."""
    key = (shape, device, dtype, left_to_host)
    if key not in _shared:
        backend = "upstream" if left_to_host else "torch"
        detail = left_to_host or "float32 linear"
        name = str(dtype).removeprefix("torch.")
        _shared[key] = ledger.record(Decision("gate", shape, str(device), name, backend, detail))
    return _shared[key]
