"""One registration call: what SGLang's scanner reads from it, and what is wrong with it."""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator
from dataclasses import dataclass

from sglang_moe_ext import ci

MARKERS = {
    name: name.removeprefix("register_").removesuffix("_ci")
    for name in ci.__all__
    if name.startswith("register_")
}
POSITIONAL = ("est_time", "suite", "nightly", "disabled")
ARGUMENTS = (*POSITIONAL, "stage", "runner_config")


@dataclass(frozen=True)
class Registration:
    """One file in one suite of one backend.

    est_time: seconds for the whole file. suite: None if SGLang puts the file in no suite.
    disabled: the reason why it must not run, or None.
    """

    path: str
    line: int
    backend: str
    est_time: float
    suite: str | None
    nightly: bool = False
    disabled: str | None = None


@dataclass(frozen=True)
class Problem:
    """What is wrong, where. silent: SGLang's scanner says nothing about it."""

    path: str
    line: int
    text: str
    silent: bool

    def __str__(self) -> str:
        note = " [SGLang's scanner would not tell you]" if self.silent else ""
        return f"{self.path}:{self.line}: {self.text}{note}"


def read_call(call: ast.Call, marker: str, path: str) -> tuple[Registration | None, list[Problem]]:
    """The registration as SGLang 0.5.23 reads it, or None if it refuses the call; all problems."""
    refused: list[str] = []
    misread: list[str] = []
    given = _bind(call, refused)
    literals = {name: node.value for name, node in given.items() if isinstance(node, ast.Constant)}

    def text(name: str) -> str | None:
        value = literals.get(name)
        if value is None or isinstance(value, str):
            return value
        refused.append(f"{name}={value!r}, expected a string")
        return None

    est_time = literals.get("est_time")
    if not isinstance(est_time, int | float):
        found = repr(est_time) if "est_time" in literals else "no literal"
        refused.append(f"est_time: found {found}, expected a literal number of seconds")
        est_time = math.nan
    elif isinstance(est_time, bool) or not 0 < est_time < math.inf:
        misread.append(f"est_time={est_time!r}, expected a positive number of seconds")

    nightly = literals.get("nightly", False)
    if not isinstance(nightly, bool):
        refused.append(f"nightly={nightly!r}, expected True or False")

    disabled = text("disabled")
    if disabled == "":
        misread.append('disabled="" disables the file, expected the reason why')

    suite, stage, runner_config = text("suite"), text("stage"), text("runner_config")
    chosen = [name for name in ("suite", "stage", "runner_config") if name in literals]
    if chosen not in (["suite"], ["stage", "runner_config"]):
        refused.append(
            f"found {' and '.join(chosen) or 'no suite'}, "
            "expected either suite, or both stage and runner_config, as literal strings"
        )
    misread += [
        f"{name}=None counts as given and puts the file in no suite; leave it out"
        for name in chosen
        if literals[name] is None
    ]
    misread += [
        f"{name}={ast.unparse(node)} reads as not given, expected a literal "
        "(registrations are read, never executed)"
        for name, node in given.items()
        if name not in literals
    ]

    problems = [
        Problem(path, call.lineno, f"{marker}: {fault}", silent)
        for faults, silent in ((refused, False), (misread, True))
        for fault in faults
    ]
    if refused:
        return None, problems
    if stage is not None and runner_config is not None:
        suite = f"{stage}-test-{runner_config}"
    registration = Registration(
        path, call.lineno, MARKERS[marker], float(est_time), suite, nightly is True, disabled
    )
    return registration, problems


def _bind(call: ast.Call, refused: list[str]) -> dict[str, ast.expr]:
    """The call's expressions by argument name; what cannot be bound is added to `refused`."""
    positional = [node for node in call.args if not isinstance(node, ast.Starred)]
    if len(positional) < len(call.args) or any(keyword.arg is None for keyword in call.keywords):
        refused.append("* and ** arguments cannot be read, expected every argument written out")
    if len(positional) > len(POSITIONAL):
        refused.append(
            f"{len(positional)} positional arguments, expected at most {len(POSITIONAL)}: "
            f"{', '.join(POSITIONAL)}"
        )
    bound = dict(zip(POSITIONAL, positional, strict=False))
    for name, node in _named(call):
        if name not in ARGUMENTS:
            refused.append(f"unknown argument {name}, expected one of {', '.join(ARGUMENTS)}")
        elif name in bound:
            refused.append(f"{name} is given twice")
        else:
            bound[name] = node
    return bound


def _named(call: ast.Call) -> Iterator[tuple[str, ast.expr]]:
    for keyword in call.keywords:
        if keyword.arg is not None:
            yield keyword.arg, keyword.value
