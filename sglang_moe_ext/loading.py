"""Checked loading: no gate or correction bias enters a server missing, broken or rounded away.

A model's routing parameters are filled with NaN when it is built, so after the load whatever
still is not finite was never received or is broken in the checkpoint. This covers every
model family by its parameters, without replacing its gate, and every way in: `load_weights`,
the loaders that bypass it, and the updates of a running server.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sglang_moe_ext import env
from sglang_moe_ext.origin import Stray, file_of
from sglang_moe_ext.parameters import (
    RoutingParameter,
    is_bias_name,
    not_finite,
    renew,
    routing_parameters,
    unstorable,
    value_problem,
)

logger = logging.getLogger(__name__)

Named = tuple[str, Tensor]
UPDATE = "the update"


class CheckpointError(ValueError):
    """The routing tensors of a checkpoint or an update are not what the model needs."""


class _TensorError(CheckpointError):
    """One tensor is refused before it is written; `key` as the checkpoint has it."""

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(f"{key}: {problem}")
        self.key, self.problem = key, problem


def make_initializer(original: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """A replacement for SGLang's `_initialize_model`: the model it builds loads checked."""

    @functools.wraps(original)
    def initialize(model_config: Any, *args: Any, **kwargs: Any) -> nn.Module:
        model = original(model_config, *args, **kwargs)
        if any(True for _ in routing_parameters(model)):
            _CheckedLoading(model, model_config)
        return model

    return initialize


def make_direct_loader(original: Callable[..., None]) -> Callable[..., None]:
    """A replacement for `_model_load_weights_direct`, which writes into parameters by name."""

    @functools.wraps(original)
    def load_direct(model: nn.Module, named_tensors: Sequence[Named]) -> None:
        _check_before_writing(model, named_tensors)
        original(model, named_tensors)
        renew(model)

    return load_direct


def make_tensor_updater(original: Callable[..., Any]) -> Callable[..., Any]:
    """A replacement for `update_weights_from_tensor`: a refusal is an answer.

    SGLang lets an exception of this kind of update end the scheduler, and so the server.
    """

    @functools.wraps(original)
    def update(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return original(self, *args, **kwargs)
        except CheckpointError as error:
            return False, str(error)

    return update


def mark_gate_parameter(gate_parameter: nn.Parameter, key: str) -> None:
    """Give a parameter of our gate a `weight_loader` that refuses before it overwrites.

    key: the parameter's name in the checkpoint, for the message.
    """

    def load(parameter: nn.Parameter, loaded: Tensor) -> None:
        problem = unstorable(loaded, parameter.shape)
        if problem:
            raise _TensorError(key, problem)
        parameter.data.copy_(loaded)

    # SGLang's model loaders honour this attribute of a parameter.
    gate_parameter.weight_loader = load  # type: ignore[attr-defined]
    gate_parameter.moe_ext_gate = True  # type: ignore[attr-defined]


class _CheckedLoading:
    """Takes the place of a model's `load_weights` and `eval`.

    Every loader of SGLang's ends with `eval()`, also those that do without `load_weights`:
    sharded state, dummy weights, remote instances.
    """

    def __init__(self, model: Any, model_config: Any) -> None:
        self._model, self._config = model, model_config
        self._load_weights, self._eval = model.load_weights, model.eval
        self._last_good = model_config.model_path
        self._loaded = False
        self._said: set[str] = set()
        for each in routing_parameters(model):
            each.parameter.data.fill_(torch.nan)
        model.load_weights = functools.wraps(self._load_weights)(
            lambda weights, *args, **kwargs: self._load(weights, *args, **kwargs)
        )
        model.eval = self._check_and_eval

    def _load(self, weights: Iterable[Named], *args: Any, **kwargs: Any) -> Any:
        """As the model's own; raises CheckpointError naming everything that is wrong.

        An update in memory is looked through before a byte is written, so that the old
        weights go on serving. SGLang rolls an update from disk back by itself.
        """
        stray = Stray(self._model, self._config)
        try:
            if isinstance(weights, Sequence):
                _check_before_writing(self._model, weights)
            result = self._load_weights(stray.watch(weights), *args, **kwargs)
            stray.warn()
            self._check(stray)
        except BaseException as error:
            # SGLang rolls a failed update back by loading `model_path` again, which by then
            # names the checkpoint that failed: the second failure would end the server.
            path, self._config.model_path = self._path, self._last_good
            if isinstance(error, _TensorError) and not isinstance(weights, Sequence):
                line = f"{error.key} ({file_of(path, error.key)}): {error.problem}"
                raise _refusal(str(path), [line]) from None
            raise
        self._last_good, self._loaded = self._config.model_path, True
        return result

    def _check_and_eval(self) -> Any:
        del self._model.eval
        if not self._loaded:
            self._check()
        return self._eval()

    def _check(self, stray: Stray | None = None) -> None:
        for line in _accept_or_refuse(self._model, self._path, stray):
            if line not in self._said:  # a bias that is accepted stays so in every update
                self._said.add(line)
                logger.warning(line)

    @property
    def _path(self) -> Path:
        return Path(self._config.model_path)


def _check_before_writing(model: nn.Module, named_tensors: Sequence[Named]) -> None:
    """Raise CheckpointError if an update in memory holds a routing tensor that is not fit."""
    known = {each.name: each for each in routing_parameters(model)}
    accepted = env.settings().bias
    errors = []
    for name, tensor in named_tensors:
        target = known.get(name)
        if target is None and not is_bias_name(name):
            continue
        # Of a family that renames its bias only the values can be judged here.
        problem = unstorable(tensor, tensor.shape if target is None else target.parameter.shape)
        is_bias = target is None or target.is_bias
        if problem is None and (accepted == "error" or not is_bias):
            problem = value_problem(tensor, is_bias)
        if problem:
            errors.append(f"{name}: {problem}")
    if errors:
        raise _refusal(UPDATE, errors)


def _accept_or_refuse(model: nn.Module, checkpoint: Path, stray: Stray | None) -> list[str]:
    """What is wrong and was accepted by SGLANG_MOE_EXT_BIAS; CheckpointError for the rest."""
    accepted = env.settings().bias
    errors, warnings = [], []
    for each in routing_parameters(model):
        problem = value_problem(each.parameter, each.is_bias)
        if not problem:
            continue
        if each.parameter.isnan().all():
            problem = (
                f"no value was loaded, expected {list(each.parameter.shape)} finite numbers"
                + (stray.beside(each.name) if stray and each.is_bias else "")
            )
        line = f"{each.name} ({file_of(checkpoint, each.name)}): {problem}"
        if not each.is_bias or accepted == "error":
            errors.append(line)
        else:
            warnings.append(f"{line}; {_accept(each, accepted)}")
    if errors:
        raise _refusal(str(checkpoint), errors)
    renew(model)
    return warnings


def _accept(bias: RoutingParameter, accepted: str) -> str:
    # What was never loaded holds our own marks: there is nothing to take as it is.
    is_missing = bias.parameter.isnan().all()
    if is_missing or (accepted == "zero" and not_finite(bias.parameter)):
        bias.parameter.data.zero_()
        return f"{env.PREFIX}_BIAS={accepted}: filled with zeros"
    return f"accepted by {env.PREFIX}_BIAS={accepted}"


def _refusal(what: str, errors: list[str]) -> CheckpointError:
    look = f"`python -m sglang_moe_ext inspect {what}` tells more; " * (what != UPDATE)
    return CheckpointError(
        f"{what}: {len(errors)} routing tensor(s) are not fit to serve:\n  "
        + "\n  ".join(errors)
        + f"\n{look}{env.PREFIX}_BIAS=zero fills a missing or non-finite bias with zeros, "
        + "=warn only a missing one and takes others as they are; nothing else is accepted"
    )
