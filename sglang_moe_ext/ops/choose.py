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

from sglang_moe_ext import env, ledger
from sglang_moe_ext.ledger import Decision
from sglang_moe_ext.limits import PORTABLE, PREFERENCE
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
    """A decision and the function that carries it out."""

    spec: RouterSpec
    run: Run
    decision: Decision
    forced: bool = False


def candidates(device_type: str) -> tuple[str, ...]:
    """Backends to try on a device, the fastest first."""
    return PREFERENCE.get(device_type, ()) + PORTABLE


def explain(spec: RouterSpec) -> list[tuple[str, str | None]]:
    """(backend, reason why not) in order of preference; None means it can serve.

    Loads backends but runs none: a self-check may still pass one over.
    """
    return [(name, _refusal(name, spec)) for name in candidates(spec.device_type)]


def force(name: str, spec: RouterSpec, device: torch.device) -> Plan:
    """A plan for this backend only. Raises BackendError with the reason if it cannot serve."""
    if name not in MODULES:
        raise ValueError(f"backend is {name!r}, expected one of {', '.join(MODULES)}")
    refusal = _refusal(name, spec)
    if refusal:
        raise BackendError(f"backend {name!r} was forced but cannot route {spec}: {refusal}")
    prepared = _load(name).prepare(spec)
    decision = _decision(spec, device, name, f"forced; {prepared.detail}")
    return Plan(spec, prepared.run, ledger.record(decision), forced=True)


def choose(
    spec: RouterSpec, device: torch.device, rejected: tuple[tuple[str, str], ...] = ()
) -> Plan:
    """The first candidate, not yet rejected, that supports the call and passes its check.

    Raises BackendError with every reason if none is left.
    """
    passed_over = dict(rejected)
    for name in candidates(spec.device_type):
        if name in passed_over:
            continue
        refusal = _refusal(name, spec)
        if refusal is None:
            prepared = _load(name).prepare(spec)
            started = time.perf_counter()
            refusal = _failed_check(name, prepared, spec, device)
            if refusal is None:
                elapsed_ms = round((time.perf_counter() - started) * 1e3, 2)
                decision = _decision(spec, device, name, prepared.detail)
                decision.rejected = tuple(passed_over.items())
                decision.selfcheck_ms = elapsed_ms if _is_checked(name) else None
                return Plan(spec, prepared.run, ledger.record(decision))
        passed_over[name] = refusal
    reasons = "; ".join(f"{name}: {why}" for name, why in passed_over.items())
    raise BackendError(f"no backend can route {spec} on {device}: {reasons}")


def serve_with_the_next(
    plan: Plan, error: Exception, logits: Tensor, bias: Tensor
) -> tuple[Plan, tuple[Tensor, Tensor]]:
    """Answer a call whose backend raised; returns the plan to keep to from now on."""
    while True:
        failed = plan.decision
        why = f"raised {type(error).__name__}: {error}"
        logger.error(
            "backend %r %s while routing %s on %s; the next backend takes over",
            failed.backend,
            why,
            failed.shape,
            failed.device,
        )
        rejected = (*failed.rejected, (failed.backend, why))
        try:
            plan = choose(plan.spec, logits.device, rejected)
        except BackendError:
            raise error from None
        try:
            return plan, plan.run(logits, bias)
        except Exception as next_error:
            error = next_error


def _decision(spec: RouterSpec, device: torch.device, backend: str, detail: str) -> Decision:
    dtype = str(spec.logits_dtype).removeprefix("torch.")
    return Decision("router", str(spec), str(device), dtype, backend, detail)


def _load(name: str) -> Backend:
    return cast(Backend, importlib.import_module(MODULES[name]))


def _refusal(name: str, spec: RouterSpec) -> str | None:
    try:
        return _load(name).supports(spec)
    except ImportError as error:
        return f"not installed: {error}"


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
        failure = f"raised {type(error).__name__}: {error}"
    if failure is None:
        return None
    message = f"backend {name!r} failed its self-check for {spec} on {device}: {failure}"
    logger.error("%s; it will not serve this shape", message)
    if env.settings().strict:
        raise SystemExit(f"sglang-moe-ext: {message}")
    return f"self-check: {failure}"
