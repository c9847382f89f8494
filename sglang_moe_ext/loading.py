"""Checked loading: no gate or correction bias enters a server missing, broken or rounded away.

A model's routing parameters are filled with NaN when it is built, so after the load whatever
still is not finite was never received or is broken in the checkpoint. This covers every
model family by the names of its parameters, without replacing its gate.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sglang_moe_ext import env

logger = logging.getLogger(__name__)

BIAS_NAMES = ("e_score_correction_bias", "e_score_correction_bias_vl", "expert_bias")
# bfloat16 leaves a trained bias of 256 experts at an offset of 7 about 10 distinct values.
FEWEST_DISTINCT_SHARE = 0.25


class CheckpointError(ValueError):
    """The checkpoint's routing tensors are not what the model needs."""


def make_initializer(original: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """A replacement for SGLang's `_initialize_model`: the model it builds loads checked."""

    @functools.wraps(original)
    def initialize(model_config: Any, *args: Any, **kwargs: Any) -> nn.Module:
        model = original(model_config, *args, **kwargs)
        if any(True for _ in _routing_parameters(model)):
            _check_loading(model, model_config)
        return model

    return initialize


def _check_loading(model: Any, model_config: Any) -> None:
    """Mark the routing parameters as not received, and check them after `load_weights`.

    `load_weights` of this model then raises CheckpointError, naming every parameter that is
    wrong, unless SGLANG_MOE_EXT_BIAS accepts it. Online updates come the same way.
    """
    for _, parameter in _routing_parameters(model):
        parameter.data.fill_(torch.nan)
    load_weights = model.load_weights
    last_good = model_config.model_path

    @functools.wraps(load_weights)
    def load_and_check(*args: Any, **kwargs: Any) -> Any:
        nonlocal last_good
        try:
            result = load_weights(*args, **kwargs)
            _check(model, Path(model_config.model_path))
        except BaseException:
            # SGLang rolls a failed update back by loading `model_path` again, which by then
            # names the checkpoint that failed: the second failure would end the server.
            model_config.model_path = last_good
            raise
        last_good = model_config.model_path
        return result

    model.load_weights = load_and_check


def mark_gate_parameter(gate_parameter: nn.Parameter, key: str) -> None:
    """Give a parameter of our gate a `weight_loader` that refuses before it overwrites.

    key: the parameter's name in the checkpoint, for the message.
    """

    def load(parameter: nn.Parameter, loaded: Tensor) -> None:
        problem = None
        if loaded.shape != parameter.shape:
            problem = (
                f"has shape {list(loaded.shape)}, expected {list(parameter.shape)}; "
                f"is config.json the right one for this checkpoint?"
            )
        elif loaded.dtype.itemsize == 1:
            problem = (
                f"is stored as {_name(loaded.dtype)}, which means nothing without its scale, "
                f"expected a 16- or 32-bit type: leave gates out of the quantisation"
            )
        elif not loaded.is_floating_point():
            problem = f"is stored as {_name(loaded.dtype)}, expected a floating-point type"
        if problem:
            raise CheckpointError(f"{key} {problem}")
        parameter.data.copy_(loaded)

    # SGLang's model loaders honour this attribute of a parameter.
    gate_parameter.weight_loader = load  # type: ignore[attr-defined]
    gate_parameter.moe_ext_gate = True  # type: ignore[attr-defined]


def _routing_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Correction biases of any family, and everything in our own gates."""
    for name, parameter in model.named_parameters():
        if name.rpartition(".")[2] in BIAS_NAMES or hasattr(parameter, "moe_ext_gate"):
            yield name, parameter


def _check(model: nn.Module, checkpoint: Path) -> None:
    """Raise CheckpointError for all that is wrong, or do as SGLANG_MOE_EXT_BIAS says."""
    accepted = env.settings().bias
    errors = []
    for name, parameter in _routing_parameters(model):
        is_bias = name.rpartition(".")[2] in BIAS_NAMES
        broken = _broken(parameter)
        problem = broken or (is_bias and _rounded_away(parameter))
        if not problem:
            continue
        line = f"{name} ({_where(checkpoint, name)}): {problem}"
        if not is_bias or accepted == "error":
            errors.append(line)
        elif broken and accepted == "zero":
            parameter.data.zero_()
            logger.warning("%s; %s_BIAS=zero: filled with zeros", line, env.PREFIX)
        else:
            logger.warning("%s; accepted by %s_BIAS=%s", line, env.PREFIX, accepted)
    if errors:
        raise CheckpointError(
            f"{checkpoint}: {len(errors)} routing tensor(s) are not fit to serve:\n  "
            + "\n  ".join(errors)
            + f"\n`python -m sglang_moe_ext inspect {checkpoint}` tells more; "
            + f"{env.PREFIX}_BIAS=zero fills a missing or non-finite bias with zeros, "
            + "=warn takes it as it is"
        )


def _broken(parameter: nn.Parameter) -> str | None:
    finite = parameter.isfinite()
    if finite.all():
        return None
    if parameter.isnan().all():
        return f"no value was loaded, expected {list(parameter.shape)} finite numbers"
    bad = int((~finite).sum())
    first = int((~finite).flatten().nonzero()[0])
    return (
        f"{bad} of {parameter.numel()} values are not finite, the first is "
        f"{parameter.flatten()[first].item()} at {first}, expected finite numbers"
    )


def _rounded_away(bias: nn.Parameter) -> str | None:
    """A bias whose values were merged by a 16-bit type on the way into the checkpoint."""
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


def _where(checkpoint: Path, key: str) -> str:
    """The file that holds a key, or that none does."""
    index = checkpoint / "model.safetensors.index.json"
    if index.is_file():
        files = json.loads(index.read_text(encoding="utf-8")).get("weight_map", {})
        return str(files.get(key, "in no file of the index"))
    (only, *more) = sorted(path.name for path in checkpoint.glob("*.safetensors")) or ["no file"]
    return only if not more else f"one of {1 + len(more)} files without an index"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
