"""Registrations: the markers, what the scanner reads and what it says, suite names, run_file."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from sglang_moe_ext import ci
from sglang_moe_ext.ci import register_cpu_ci, run_file
from sglang_moe_ext.ci.registration import MARKERS, Problem, Registration
from sglang_moe_ext.ci.scan import Scan, scan_file
from sglang_moe_ext.ci.suites import OUR_SUITES, known_suites

register_cpu_ci(est_time=5, suite="base-a-test-cpu")

ScanBoth = Callable[[Path], Scan]
MAIN = 'if __name__ == "__main__":\n    run_file(__file__)\n'
IMPORT = "from sglang_moe_ext.ci import register_cpu_ci, register_xpu_ci, run_file\n"


# --- markers -------------------------------------------------------------------------------


def test_markers_have_the_signatures_of_sglang(sglang_scanner: ModuleType) -> None:
    assert sglang_scanner.REGISTER_MAPPING.keys() == MARKERS.keys()
    for name in MARKERS:
        ours, theirs = (inspect.signature(getattr(m, name)) for m in (ci, sglang_scanner))
        assert [(p.name, p.kind, p.default) for p in ours.parameters.values()] == [
            (p.name, p.kind, p.default) for p in theirs.parameters.values()
        ]


@pytest.mark.parametrize("name", MARKERS)
def test_markers_do_nothing(name: str) -> None:
    assert getattr(ci, name)(5, "a-suite", True, "a reason") is None
    assert getattr(ci, name)(est_time=5, stage="base-b", runner_config="1-gpu-large") is None


def test_markers_need_neither_sglang_nor_torch_nor_pytest() -> None:
    code = (
        "import sys, sglang_moe_ext.ci; "
        "assert not {'sglang', 'torch', 'pytest'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- what is read, and what is said about it ------------------------------------------------

CLEAN = {
    "suite": ('register_cpu_ci(est_time=5, suite="s")', ("cpu", 5.0, "s", False, None)),
    "positional": ('register_cpu_ci(1.5, "s", True)', ("cpu", 1.5, "s", True, None)),
    "stage and runner_config": (
        'register_xpu_ci(5, stage="stage-b", runner_config="1-gpu-xpu")',
        ("xpu", 5.0, "stage-b-test-1-gpu-xpu", False, None),
    ),
    "disabled": ('register_cpu_ci(5, "s", disabled="slow")', ("cpu", 5.0, "s", False, "slow")),
}

REFUSED = {
    "non-literal est_time": ("register_cpu_ci(T, 's')", "est_time: found no literal"),
    "text est_time": ("register_cpu_ci('5', 's')", "est_time: found '5'"),
    "no suite": ("register_cpu_ci(5)", "found no suite, expected either suite, or both"),
    "non-literal suite": ("register_cpu_ci(5, SUITE)", "suite=SUITE reads as not given"),
    "suite and pair": (
        "register_cpu_ci(5, 's', stage='a', runner_config='b')",
        "found suite and stage and runner_config, expected either",
    ),
    "half a pair": ("register_cpu_ci(5, stage='a')", "found stage, expected either"),
    "numeric suite": ("register_cpu_ci(5, 6)", "suite=6, expected a string"),
    "numeric nightly": ("register_cpu_ci(5, 's', nightly=1)", "nightly=1, expected True or"),
    "numeric disabled": ("register_cpu_ci(5, 's', disabled=1)", "disabled=1, expected a string"),
    "unknown argument": ("register_cpu_ci(5, 's', est=5)", "unknown argument est, expected one of"),
    "argument twice": ("register_cpu_ci(5, 's', suite='t')", "suite is given twice"),
    "too many": ("register_cpu_ci(5, 's', True, None, 1)", "5 positional arguments, expected"),
    "starred": ("register_cpu_ci(*A)", "every argument written out"),
    "double-starred": ("register_cpu_ci(5, **A)", "every argument written out"),
    "not Python": ("register_cpu_ci(5 5)", "cannot be parsed"),
}

SILENT = {
    "non-literal nightly": ("register_cpu_ci(5, 's', nightly=N)", "nightly=N reads as not given"),
    "non-literal disabled": ("register_cpu_ci(5, 's', disabled=WHY)", "disabled=WHY reads as not"),
    "empty reason": ("register_cpu_ci(5, 's', disabled='')", "expected the reason why"),
    "suite None": ("register_cpu_ci(5, None)", "suite=None counts as given"),
    "no time at all": ("register_cpu_ci(0, 's')", "est_time=0, expected a positive"),
    "twice": ("register_cpu_ci(5, 's')\nregister_cpu_ci(6, 's')", "would run twice"),
    "attribute": ("ci.register_xpu_ci(5, 's')", "as the attribute ci.register_xpu_ci"),
    "in an if": ("if True:\n    register_xpu_ci(5, 's')", "inside an `if`, which registers no"),
    "in a function": ("def f():\n    register_xpu_ci(5, 's')", "inside a function"),
    "in a loop": ("for s in 'ab':\n    register_xpu_ci(5, s)", "inside a loop"),
    "wrapped": ("print(register_xpu_ci(5, 's'))", "not as a statement of its own"),
    "assigned": ("x = register_xpu_ci(5, 's')", "not as a statement of its own"),
    "alias": ("from sglang_moe_ext.ci import register_xpu_ci as r", "under the name r"),
    "strange origin": ("register_npu_ci(5, 's')", "register_npu_ci is not imported from"),
}


@pytest.mark.parametrize(("call", "expected"), CLEAN.values(), ids=CLEAN)
def test_reads(tmp_path: Path, scan_both: ScanBoth, call: str, expected: tuple) -> None:
    path = write(tmp_path, call)
    assert scan_both(path) == ([Registration(str(path), 2, *expected)], [])


@pytest.mark.parametrize(("call", "message"), REFUSED.values(), ids=REFUSED)
def test_says_what_sglang_refuses(
    tmp_path: Path, scan_both: ScanBoth, call: str, message: str
) -> None:
    problems = scan_both(write(tmp_path, call)).problems
    assert any(message in problem.text for problem in problems), problems


@pytest.mark.parametrize(("call", "message"), SILENT.values(), ids=SILENT)
def test_says_what_sglang_does_not(
    tmp_path: Path, scan_both: ScanBoth, call: str, message: str
) -> None:
    path = write(tmp_path, f"register_cpu_ci(5, 'other')\n{call}")
    (problem,) = scan_both(path).problems
    assert message in problem.text
    assert problem.silent
    assert str(problem).startswith(f"{path}:")


@pytest.mark.parametrize(
    "main",
    [
        "",
        'if __name__ == "__main__":\n    pass\n',
        'if "__main__" == __name__:\n    f()\n',
        'if __name__ != "__main__":\n    f()\n',
    ],
    ids=["absent", "calls nothing", "reversed", "negated"],
)
def test_missing_main_block(tmp_path: Path, scan_both: ScanBoth, main: str) -> None:
    path = write(tmp_path, 'register_cpu_ci(5, "s")', main=main)
    (problem,) = scan_both(path).problems
    assert "end it with one that calls run_file(__file__)" in problem.text


def test_a_disabled_file_needs_no_main_block(tmp_path: Path, scan_both: ScanBoth) -> None:
    path = write(tmp_path, 'register_cpu_ci(5, "s", disabled="slow")', main="")
    assert not scan_both(path).problems


def test_no_registration(tmp_path: Path, scan_both: ScanBoth) -> None:
    (problem,) = scan_both(write(tmp_path, "x = 1")).problems
    assert "no registration found" in problem.text


def test_unknown_suite(tmp_path: Path) -> None:
    path = write(tmp_path, 'register_cpu_ci(5, "base-a-tset-cpu")\nregister_xpu_ci(5, "any")')
    (problem,) = scan_file(path, {"cpu": frozenset({"base-a-test-cpu"})}).problems
    assert problem == Problem(
        str(path),
        2,
        "unknown cpu suite 'base-a-tset-cpu', expected one of base-a-test-cpu",
        silent=True,
    )


def write(folder: Path, body: str, main: str = MAIN) -> Path:
    path = folder / "test_made.py"
    path.write_text(f"{IMPORT}{body}\n{main}", encoding="utf-8")
    return path


# --- suites ---------------------------------------------------------------------------------


def test_suites_of_a_source_tree_are_added_to_ours(tmp_path: Path) -> None:
    runner = tmp_path / "run_suite.py"
    runner.write_text(
        'BY_COMMIT = {HWBackend.CPU: ["base-z-test-cpu"], HWBackend.NPU: ["stage-b-test-1-npu"]}\n'
        'AT_NIGHT = {HWBackend.NPU: ["nightly-1-npu"], HWBackend.MUSA: []}\n'
        'LABELS = {"cpu": HWBackend.CPU}\n'
    )
    suites = known_suites(runner)
    assert suites["npu"] == {"stage-b-test-1-npu", "nightly-1-npu"}
    assert suites["cpu"] == OUR_SUITES["cpu"] | {"base-z-test-cpu"}
    assert suites["xpu"] == OUR_SUITES["xpu"]


def test_a_source_tree_without_suites_is_an_error(tmp_path: Path) -> None:
    runner = tmp_path / "run_suite.py"
    runner.write_text("SUITES = load_suites()\n")
    with pytest.raises(ValueError, match=r"run_suite\.py: no suite table found, expected"):
        known_suites(runner)


# --- run_file -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tests", "arguments", "code", "output"),
    [
        ("def test_a(): pass\ndef test_b(): assert 0", ["-f", "-k", "test_a"], 0, "1 passed, 1 de"),
        ("def test_a(): pass\ndef test_b(): assert 0", ["-f"], 1, "1 failed, 1 passed"),
        ("", ["-f"], 5, "no tests ran"),
    ],
    ids=["arguments are forwarded", "failure", "no test"],
)
def test_run_file(tmp_path: Path, tests: str, arguments: list[str], code: int, output: str) -> None:
    path = write(tmp_path, tests)
    run = subprocess.run([sys.executable, path, *arguments], capture_output=True, text=True)
    assert run.returncode == code, run.stdout + run.stderr
    assert output in run.stdout


if __name__ == "__main__":
    run_file(__file__)
