"""Which backend serves a specification on a device, and why not the others."""

from __future__ import annotations

import importlib
import logging
import time
from dataclasses import dataclass
from types import MappingProxyType
from typing import cast

import torch
from torch import Tensor

from sglang_moe_ext import env, ledger, notice
from sglang_moe_ext.ledger import Decision
from sglang_moe_ext.limits import PORTABLE, PREFERENCE
from sglang_moe_ext.notice import describe
from sglang_moe_ext.ops import selfcheck
from sglang_moe_ext.ops.backend import Backend, Prepared, Run
from sglang_moe_ext.ops.spec import RouterSpec

logger = logging.getLogger(__name__)

# Imported when a tensor of the device arrives, never before.
MODULES = MappingProxyType(
    {
        "reference": "sglang_moe_ext.ops.reference",
        "torch": "sglang_moe_ext.ops.torch_router",
        "cpu": "sglang_moe_ext.ops.cpu_router",
        "triton": "sglang_moe_ext.ops.triton_router",
        "xpu": "sglang_moe_ext.ops.xpu_router",
    }
)


class BackendError(RuntimeError):
    """A forced backend cannot serve the call, or no backend could."""


@dataclass(slots=True, eq=False)
class Plan:
    """A decision and the function that carries it out; if it raises, `is_last` says: so be it."""

    spec: RouterSpec
    run: Run
    decision: Decision
    is_last: bool = False


def candidates(device_type: str) -> tuple[str, ...]:
    """Backends to try on a device, the fastest first."""
    return PREFERENCE.get(device_type, ()) + PORTABLE


def force(name: str, spec: RouterSpec, device: torch.device) -> Plan:
    """A plan for this backend only. Raises BackendError with the reason if it cannot serve."""
    if name not in MODULES:
        raise ValueError(f"backend is {name!r}, expected one of {', '.join(MODULES)}")
    try:
        prepared = prepare(name, spec)
    except Exception as error:
        prepared = f"unusable: {describe(error)}"
    if isinstance(prepared, str):
        raise BackendError(f"backend {name!r} was forced but cannot route {spec}: {prepared}")
    decision = _decision(spec, device, name, f"forced; {prepared.detail}")
    return Plan(spec, prepared.run, ledger.record(decision), is_last=True)


def choose(
    spec: RouterSpec, device: torch.device, rejected: tuple[tuple[str, str], ...] = ()
) -> Plan:
    """The first candidate, not yet rejected, that supports the call and passes its check.

    If none is left, a plan whose every call raises BackendError with all the reasons.
    """
    passed_over = dict(rejected)
    for name in candidates(spec.device_type):
        if name in passed_over:
            continue
        try:
            prepared = prepare(name, spec)
        except Exception as error:  # numba and drivers raise anything; no request is lost to it
            passed_over[name] = why = f"unusable: {describe(error)}"
            _say(f"backend {name!r} is {why}; the next backend serves")
            continue
        if isinstance(prepared, str):
            passed_over[name] = prepared
            continue
        started = time.perf_counter()
        failure = _failed_check(name, prepared, spec, device)
        if failure:
            passed_over[name] = failure
            continue
        elapsed_ms = round((time.perf_counter() - started) * 1e3, 2)
        decision = _decision(spec, device, name, prepared.detail)
        decision.rejected = tuple(passed_over.items())
        decision.selfcheck_ms = elapsed_ms if _is_checked(name) else None
        return Plan(spec, prepared.run, ledger.record(decision))
    reasons = "; ".join(f"{name}: {why}" for name, why in passed_over.items())
    message = f"no backend can route {spec} on {device}: {reasons}"
    _say(message)

    def refuse(logits: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        raise BackendError(message)

    return Plan(spec, refuse, _decision(spec, device, "none", message), is_last=True)


def choose_next(plan: Plan, error: Exception, device: torch.device) -> Plan:
    """The plan to keep to from now on, after a call of `plan` raised `error`."""
    failed = plan.decision
    why = f"raised {describe(error)}"
    _say(
        f"backend {failed.backend!r} {why} while routing {failed.shape} {failed.dtype} on "
        f"{failed.device}; the next backend takes over"
    )
    return choose(plan.spec, device, (*failed.rejected, (failed.backend, why)))


def _say(message: str) -> None:
    notice.once(logger.error, f"sglang-moe-ext: {message}; see `python -m sglang_moe_ext doctor`")


def _decision(spec: RouterSpec, device: torch.device, backend: str, detail: str) -> Decision:
    dtype = str(spec.logits_dtype).removeprefix("torch.")
    return Decision("router", str(spec), str(device), dtype, backend, detail)


def _load(name: str) -> Backend:
    return cast(Backend, importlib.import_module(MODULES[name]))


def prepare(name: str, spec: RouterSpec) -> Prepared | str:
    """The backend bound to the specification, or why it does not serve it. May raise anything."""
    backend = _load(name)
    return backend.supports(spec) or backend.prepare(spec)


def _is_checked(name: str) -> bool:
    if name == "reference" or not env.settings().selfcheck:
        return False
    # A capture can't wait for an answer; servers warm up before they capture.
    return not (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing())


def _failed_check(
    name: str, prepared: Prepared, spec: RouterSpec, device: torch.device
) -> str | None:
    """Why the self-check disqualifies a backend, or None. Ends the process under strict."""
    if not _is_checked(name):
        return None
    try:
        failure = selfcheck.find_failure(prepared.run, spec, device)
    except Exception as error:  # a kernel may raise anything; none of it may reach a request
        failure = f"raised {describe(error)}"
    if failure is None:
        return None
    message = f"backend {name!r} failed its self-check for {spec} on {device}: {failure}"
    _say(f"{message}; it will not serve this shape")
    if env.settings().strict:
        raise SystemExit(f"sglang-moe-ext: {message}")
    return f"self-check: {failure}"
