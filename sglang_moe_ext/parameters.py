"""Which parameters of a model route, and whether a value of one is fit to serve."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

BIAS_NAMES = ("e_score_correction_bias", "e_score_correction_bias_vl", "expert_bias", "router_bias")
# bfloat16 leaves a trained bias of 256 experts at an offset of 7 about 10 distinct values.
FEWEST_DISTINCT_SHARE = 0.25


@dataclass(frozen=True, slots=True, eq=False)
class RoutingParameter:
    """name: as in the model, which for most families is the checkpoint's key too."""

    name: str
    parameter: nn.Parameter
    is_bias: bool


def routing_parameters(model: nn.Module) -> Iterator[RoutingParameter]:
    """Everything in our own gates, and the correction biases of any family.

    A bias is known by its name, or by being what a TopK adds to the scores.
    """
    held = {bias.data_ptr() for bias in held_biases(model)} - {0}
    for name, parameter in model.named_parameters():
        is_bias = is_bias_name(name) or (parameter.dim() == 1 and parameter.data_ptr() in held)
        if is_bias or hasattr(parameter, "moe_ext_gate"):
            yield RoutingParameter(name, parameter, is_bias)


def held_biases(model: nn.Module) -> Iterator[Tensor]:
    """What the TopKs of the model route with: a Parameter, its `.data` or a view of it."""
    for module in model.modules():
        config: Any = getattr(module, "topk_config", None)
        bias = getattr(config, "correction_bias", None)
        if isinstance(bias, Tensor):
            yield bias


def is_bias_name(name: str) -> bool:
    return name.rpartition(".")[2] in BIAS_NAMES


def unstorable(stored: Tensor, shape: torch.Size) -> str | None:
    """Why a stored gate or bias must not be copied into a parameter of `shape`, or None."""
    dtype = str(stored.dtype).removeprefix("torch.")
    if stored.shape != shape:
        return (
            f"has shape {list(stored.shape)}, expected {list(shape)}; "
            f"is config.json the right one for this checkpoint?"
        )
    if stored.dtype.itemsize == 1:
        return (
            f"is stored as {dtype}, which means nothing without its scale, "
            f"expected a 16- or 32-bit type: leave gates out of the quantisation"
        )
    if not stored.is_floating_point():
        return f"is stored as {dtype}, expected a floating-point type"
    return None


def not_finite(values: Tensor) -> str | None:
    finite = values.isfinite()
    if finite.all():
        return None
    bad = int((~finite).sum())
    first = int((~finite).flatten().nonzero()[0])
    return (
        f"{bad} of {values.numel()} values are not finite, the first is "
        f"{values.flatten()[first].item()} at {first}, expected finite numbers"
    )


def rounded_away(bias: Tensor) -> str | None:
    """Were the values merged by a 16-bit type on their way here?"""
    values = bias.detach().float().flatten().cpu()
    distinct = len(set(values.tolist()))
    if distinct == 1 or distinct >= FEWEST_DISTINCT_SHARE * values.numel():
        return None
    if not torch.equal(values, values.bfloat16().float()):
        return None
    return (
        f"only {distinct} distinct values for {values.numel()} experts, all of them bfloat16 "
        f"numbers between {values.min():g} and {values.max():g}: rounding has merged experts' "
        f"biases, expected the float32 original"
    )


def value_problem(values: Tensor, is_bias: bool) -> str | None:
    return not_finite(values) or (rounded_away(values) if is_bias else None)


def renew(model: nn.Module) -> None:
    """Make what was cached of a bias be made anew.

    SGLang's loaders write through `.data`, which leaves a tensor's version as it was, and
    SGLang keys its cast copy of the bias on that version (TopKConfig.correction_bias_for_dtype).
    """
    for bias in held_biases(model):
        torch.autograd.graph.increment_version(bias)  # an inference tensor has none: no-op
