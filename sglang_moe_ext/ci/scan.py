"""Collects registrations from test files, as SGLang's scanner does, and checks the files.

`Scan.registrations` is what SGLang 0.5.23 collects, no more and no less. `Scan.problems` is
what the author should hear of: what SGLang refuses, and what it ignores or misreads without a
word (`Problem.silent`), such as a call inside an `if`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from sglang_moe_ext import ci
from sglang_moe_ext.ci.registration import MARKERS, Problem, Registration, read_call

MARKER_MODULES = (ci.__name__, "sglang.test.ci.ci_register")
NOT_TEST_FILES = ("conftest.py", "__init__.py")
ENCLOSING: Mapping[type[ast.stmt], str] = {
    ast.If: "inside an `if`",
    ast.For: "inside a loop",
    ast.While: "inside a loop",
    ast.With: "inside a `with`",
    ast.Try: "inside a `try`",
    ast.FunctionDef: "inside a function",
    ast.ClassDef: "inside a class",
}

Suites = Mapping[str, frozenset[str]]


class Scan(NamedTuple):
    registrations: list[Registration]
    problems: list[Problem]


def scan_tree(root: Path, suites: Suites) -> Scan:
    """All test files below a folder: every .py file but conftest.py and __init__.py."""
    scan = Scan([], [])
    for path in sorted(root.rglob("*.py")):
        if path.name not in NOT_TEST_FILES:
            found = scan_file(path, suites)
            scan.registrations.extend(found.registrations)
            scan.problems.extend(found.problems)
    return scan


def scan_file(file: Path, suites: Suites) -> Scan:
    """One test file; problems in the order of their lines.

    suites: known suite names by backend; a backend that is not in it may use any name.
    """
    path = str(file)
    try:
        source = file.read_text(encoding="utf-8")
        tree = ast.parse(source, filename=path)
    except (SyntaxError, ValueError) as error:  # ValueError: not UTF-8, or a NUL byte
        line = getattr(error, "lineno", None) or 1
        return Scan([], [Problem(path, line, f"cannot be parsed: {error}", silent=False)])

    registrations: list[Registration] = []
    problems: list[Problem] = []
    counted = list(_counted_calls(tree))
    for call, marker in counted:
        registration, faults = read_call(call, marker, path)
        problems += faults
        if registration:
            registrations.append(registration)

    def add(line: int, text: str, *, silent: bool) -> None:
        problems.append(Problem(path, line, text, silent))

    if not counted:
        add(
            1,
            "no registration found, expected a line such as register_cpu_ci(...); what is not "
            "a test file belongs outside this folder, or into conftest.py",
            silent=False,
        )
    if any(r.disabled is None for r in registrations) and not has_main_block(tree):
        add(
            len(source.splitlines()),
            'no `if __name__ == "__main__":` block that calls something, so running the file '
            "tests nothing; end it with one that calls run_file(__file__)",
            silent=False,
        )
    for line, text in _ignored_uses(tree, {id(call.func) for call, _ in counted}):
        add(line, text, silent=True)
    for line, text in _strange_origins(tree, counted):
        add(line, text, silent=True)
    for line, text in _suite_faults(registrations, suites):
        add(line, text, silent=True)
    return Scan(registrations, sorted(problems, key=lambda problem: problem.line))


def has_main_block(tree: ast.Module) -> bool:
    """Whether running the file runs anything, by SGLang's rule: a main block with a call in it."""
    for statement in tree.body:
        match statement:
            case ast.If(
                test=ast.Compare(
                    left=ast.Name(id="__name__"),
                    ops=[ast.Eq()],
                    comparators=[ast.Constant(value="__main__")],
                )
            ):
                nodes = (node for inner in statement.body for node in ast.walk(inner))
                if any(isinstance(node, ast.Call) for node in nodes):
                    return True
    return False


def _counted_calls(tree: ast.Module) -> Iterator[tuple[ast.Call, str]]:
    for statement in tree.body:
        match statement:
            case ast.Expr(value=ast.Call(func=ast.Name(id=name)) as call) if name in MARKERS:
                yield call, name


def _ignored_uses(tree: ast.Module, counted: set[int]) -> Iterator[tuple[int, str]]:
    for statement in tree.body:
        where = ENCLOSING.get(type(statement), "not as a statement of its own")
        for node in ast.walk(statement):
            match node:
                case ast.Name(id=marker) if marker in MARKERS and id(node) not in counted:
                    how = where
                case ast.Attribute(attr=marker) if marker in MARKERS:
                    how = f"as the attribute {ast.unparse(node)}"
                case ast.alias(name=marker, asname=str(other)) if marker in MARKERS:
                    if other == marker:
                        continue
                    how = f"under the name {other}"
                case _:
                    continue
            yield (
                node.lineno,
                f"{marker} is used {how}, which registers nothing; expected a bare call "
                "as a statement of its own at module level",
            )


def _strange_origins(
    tree: ast.Module, counted: list[tuple[ast.Call, str]]
) -> Iterator[tuple[int, str]]:
    imported = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module in MARKER_MODULES
        for alias in node.names
    }
    for call, marker in counted:
        if not imported & {marker, "*"}:
            yield (
                call.lineno,
                f"{marker} is not imported from {' or '.join(MARKER_MODULES)}; the call is "
                "counted all the same, for only its name is read",
            )


def _suite_faults(registrations: list[Registration], suites: Suites) -> Iterator[tuple[int, str]]:
    lines: dict[tuple[str, str | None, bool], int] = {}
    for registration in registrations:
        backend, suite, line = registration.backend, registration.suite, registration.line
        if suite is not None and suite not in suites.get(backend, {suite}):
            known = ", ".join(sorted(suites[backend]))
            yield line, f"unknown {backend} suite {suite!r}, expected one of {known}"
        target = (backend, suite, registration.nightly)
        if target in lines:
            yield line, f"would run twice: {backend} {suite!r} stands on line {lines[target]} too"
        lines.setdefault(target, line)
