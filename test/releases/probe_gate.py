"""The gate of one SGLang release with the plugin live: its parameters, loading and logits.

Part of probe_release.py, which runs inside that release.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Iterator
from typing import Any

import torch

from sglang_moe_ext import host
from sglang_moe_ext.loading import CheckpointError

MODEL = "sglang.srt.models.deepseek_v2"
EXPERTS, HIDDEN = 16, 32


def publish_server_args() -> None:
    """The release's defaults, where they are a global that gates read when they are built."""
    server_args = importlib.import_module("sglang.srt.server_args")
    if hasattr(server_args, "_global_server_args"):
        # Without __init__, which looks for a model: fields with defaults are class attributes.
        server_args._global_server_args = object.__new__(server_args.ServerArgs)


def gate_forms() -> Iterator[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """topk_method and the arguments after config: each way this release's gate can be built."""
    _, _, *names = host.parameters(MODEL, "MoEGate.__init__")
    flags = [name for name in names if name not in ("quant_config", "prefix")]
    required: dict[str, Any] = {"quant_config": None} if "quant_config" in names else {}
    everything = {"prefix": "model.layers.3.mlp.gate", **dict.fromkeys(flags, False)}
    yield "noaux_tc", (), required | everything
    yield "greedy", (), required | everything
    yield "noaux_tc", tuple(required.values()), {}
    yield "noaux_tc", (*required.values(), "gate"), {}
    for flag in flags:
        yield "noaux_tc", (), required | {flag: True}
    if required:
        quantised = types.SimpleNamespace(get_name=lambda: "modelopt_fp4")
        yield "noaux_tc", (), {"quant_config": quantised}


def check_gate(method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    config = types.SimpleNamespace(
        n_routed_experts=EXPERTS,
        hidden_size=HIDDEN,
        topk_method=method,
        architectures=["DeepseekV3ForCausalLM"],
        model_type="deepseek_v3",
    )
    has_bias = method == "noaux_tc" and not kwargs.get("is_hash_moe")
    torch.set_default_dtype(torch.bfloat16)
    try:
        gate = sys.modules[MODEL].MoEGate(config, *args, **kwargs)
    finally:
        torch.set_default_dtype(torch.float32)
    parameters = dict(gate.named_parameters())
    found = {name: (p.dtype, tuple(p.shape)) for name, p in parameters.items()}
    expected: dict[str, Any] = {"weight": (torch.bfloat16, (EXPERTS, HIDDEN))}
    biases = ["e_score_correction_bias"] * has_bias
    biases += ["e_score_correction_bias_vl"] * bool(kwargs.get("vl_correction_bias"))
    expected |= dict.fromkeys(biases, (torch.float32, (EXPERTS,)))
    if found != expected:
        return f"parameters {found}, expected {expected}"
    if not has_bias and gate.e_score_correction_bias is not None:
        return "e_score_correction_bias is there, expected None"
    return check_loading(parameters) or check_logits(gate)


def check_loading(parameters: dict[str, Any]) -> str | None:
    """Through `weight_loader`, which SGLang's loaders call where a parameter has one."""
    for name, parameter in parameters.items():
        loaded = torch.randn(parameter.shape).to(parameter.dtype)
        parameter.weight_loader(parameter, loaded)
        if not torch.equal(parameter, loaded):
            return f"{name} does not hold what was loaded"
        try:
            parameter.weight_loader(parameter, loaded[1:])
        except CheckpointError:
            continue
        return f"{name} took {list(loaded[1:].shape)}"
    return None


def check_logits(gate: Any) -> str | None:
    hidden = torch.randn(5, HIDDEN).bfloat16()
    optional = host.parameters(MODEL, "MoEGate.forward")[2:]
    forms = [((), {}), ((None,), {})] + [((), {name: None}) for name in optional]
    exact = hidden.double() @ gate.weight.double().T
    for args, kwargs in forms:
        logits = gate(hidden, *args, **kwargs)
        if logits.dtype != torch.float32:
            return f"logits of gate(h, {args}, {kwargs}) are {logits.dtype}"
        if (logits - exact).abs().max() > 1e-4:
            return f"logits of gate(h, {args}, {kwargs}) are off by {(logits - exact).abs().max()}"
    empty = gate(hidden[:0])
    return None if tuple(empty.shape) == (0, EXPERTS) else f"no rows give {list(empty.shape)}"
