"""Every environment variable of this package: one table, read once, strict about typos."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

PREFIX = "SGLANG_MOE_EXT"
BACKENDS = ("auto", "reference", "torch", "cpu", "triton", "xpu", "upstream")
DEVICES = ("cpu", "cuda", "rocm", "xpu")
# Device types on which some backend of ours is both right and worth having.
DEFAULT_DEVICES = ("cpu", "cuda", "xpu")


class EnvError(ValueError):
    """A variable with our prefix that is unknown or has a value that is not allowed."""


@dataclass(frozen=True, slots=True)
class Variable:
    """One variable: how its text becomes a value, and what `--help` and the README say."""

    name: str
    default: str
    allowed: str
    meaning: str
    parse: Callable[[str], Any]


def _choice(*values: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in values:
            raise ValueError
        return text

    return parse


def _flag(text: str) -> bool:
    return {"0": False, "1": True}[text]


def _devices(text: str) -> frozenset[str]:
    names = frozenset(name.strip() for name in text.split(",") if name.strip())
    if not names <= frozenset(DEVICES):
        raise ValueError
    return names


def _directory(text: str) -> Path | None:
    return Path(text) if text else None


VARIABLES = (
    Variable(PREFIX, "1", "0 or 1", "0: override nothing, SGLang stays stock", _flag),
    Variable(
        f"{PREFIX}_BACKEND",
        "auto",
        ", ".join(BACKENDS),
        "force one backend; one that cannot serve a call raises with the reason",
        _choice(*BACKENDS),
    ),
    Variable(
        f"{PREFIX}_DEVICES",
        ",".join(DEFAULT_DEVICES),
        f"a comma-separated list of {', '.join(DEVICES)}",
        "device types on which the router is ours; elsewhere SGLang's own runs",
        _devices,
    ),
    Variable(
        f"{PREFIX}_STRICT",
        "0",
        "0 or 1",
        "1: a missing target, unknown signature or failed self-check ends the process",
        _flag,
    ),
    Variable(
        f"{PREFIX}_SELFCHECK",
        "1",
        "0 or 1",
        "compare a backend with the reference on first use per backend, shape and device",
        _flag,
    ),
    Variable(
        f"{PREFIX}_TRACE",
        "",
        "a directory, made if absent",
        "every process writes <pid>.jsonl there: one line per decision, then totals",
        _directory,
    ),
    Variable(
        f"{PREFIX}_GATE_LOGITS",
        "fp32",
        "fp32 or model",
        "model: leave the gate's logits in the model's dtype, as stock SGLang does",
        _choice("fp32", "model"),
    ),
    Variable(
        f"{PREFIX}_BIAS",
        "error",
        "error, warn or zero",
        "what a missing or non-finite correction bias does at load",
        _choice("error", "warn", "zero"),
    ),
)


@dataclass(frozen=True, slots=True)
class Settings:
    """The variables in force, in the order of VARIABLES."""

    enabled: bool
    backend: str
    devices: frozenset[str]
    strict: bool
    selfcheck: bool
    trace: Path | None
    gate_logits: str
    bias: str


def read(environ: Mapping[str, str]) -> Settings:
    """Parse `environ`. Raises EnvError, listing what is valid, for any doubt."""
    known = {variable.name for variable in VARIABLES}
    unknown = sorted(n for n in environ if n.startswith(PREFIX) and n not in known)
    if unknown:
        raise EnvError(f"unknown variable {unknown[0]}; known are {', '.join(sorted(known))}")
    values = []
    for variable in VARIABLES:
        text = environ.get(variable.name, variable.default)
        try:
            values.append(variable.parse(text))
        except (ValueError, KeyError):
            raise EnvError(
                f"{variable.name} is {text!r}, expected {variable.allowed} "
                f"(default {variable.default!r}: unset it)"
            ) from None
    return Settings(*values)


@cache
def settings() -> Settings:
    """The settings of this process, read at first use; `settings.cache_clear()` reads anew."""
    return read(os.environ)


def is_strict() -> bool:
    """Strict mode, also while another variable is malformed."""
    return os.environ.get(f"{PREFIX}_STRICT") == "1"
