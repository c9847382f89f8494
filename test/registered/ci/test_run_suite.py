"""scripts/run_suite.py runs files: verdicts, timeouts, retries, what it leaves behind."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sglang_moe_ext.ci import register_cpu_ci, run_file
from sglang_moe_ext.ci.execute import Outcome
from sglang_moe_ext.ci.registration import Registration
from sglang_moe_ext.ci.report import Run, estimate_hints

if TYPE_CHECKING:
    from conftest import MadeSuite

register_cpu_ci(est_time=25, suite="base-a-test-cpu")

CPU = ("--hw", "cpu", "--suite", "base-a-test-cpu")
PASSED, FAILED = 0, 1


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_passed_failed_and_skipped_are_told_apart(suite: MadeSuite) -> None:
    suite.add("a/test_pass.py", "@pytest.mark.parametrize('i', range(3))\ndef test(i): pass")
    suite.add(
        "a/test_mixed.py",
        "def test_good(): pass\n"
        "def test_bad(): assert 1 == 2\n"
        "@pytest.fixture\n"
        "def fails_after():\n    yield\n    assert 3 == 4\n"
        "def test_bad_teardown(fails_after): pass\n"
        "@pytest.fixture\n"
        "def skips_after():\n    yield\n    pytest.skip()\n"
        "def test_bad_and_skipped(skips_after): assert 5 == 6\n",
    )
    suite.add("test_skip.py", "def test_it(): pytest.skip('no such device')")
    run = suite.run(*CPU)
    assert run.exit_code == FAILED, run
    assert run.totals == "4 passed, 3 failed, 1 skipped"
    assert "passed: 3 passed, 0 failed" in run.summary_of("a/test_pass.py")
    assert "FAILED: 1 passed, 3 failed" in run.summary_of("a/test_mixed.py")
    assert "all skipped: 0 passed, 0 failed, 1 skipped (no such device)" in run.summary_of(
        "test_skip.py"
    )
    assert "assert 1 == 2" in run.stdout, "the output of a failed file is shown"
    assert re.search(r"^\[3/3, \d+ s\] test_skip.py \(estimated 1 s\)$", run.stdout, re.M)


def test_estimates_that_are_far_off_get_a_hint(suite: MadeSuite) -> None:
    suite.add("test_slow.py", registration='register_cpu_ci(est_time=600, suite="base-a-test-cpu")')
    suite.add("test_quick.py")
    run = suite.run(*CPU)
    assert run.exit_code == PASSED, run
    assert run.totals == "2 passed, 0 failed"
    assert run.stdout.index("] test_slow.py") < run.stdout.index("] test_quick.py")
    (hint,) = re.findall(
        r"^hint: test_slow\.py took (.*) s: est_time=600 should be (.*)$", run.stdout, re.M
    )
    assert 0 <= int(hint[1]) - float(hint[0]) <= 1.1


@pytest.mark.parametrize(
    ("estimated", "measured", "hinted"),
    [(100, 60, False), (100, 40, True), (5, 11, True), (5, 9, False), (1, 2.9, False)],
)
def test_far_off_is_a_factor_and_some_seconds(
    estimated: float, measured: float, hinted: bool
) -> None:
    registration = Registration("test_it.py", 1, "cpu", estimated, "base-a-test-cpu")
    outcome = Outcome(1, 0, 0, fault=None, skip_reason=None, seconds=measured, output="")
    assert bool(list(estimate_hints([Run(registration, outcome, attempts=1)]))) == hinted


UNFINISHED = {
    "empty": ("", "no test was collected", 0),
    "import error": ("import absent", "exit code 1 before any test ran; did an import fail", 0),
    "abort": (
        "def test_a(): pass\ndef test_b(): os.abort()",
        "killed by signal 6 (Aborted) in test_made.py::test_b",
        1,
    ),
    "exit 0": ("def test_a(): pass\ndef test_b(): os._exit(0)", "in test_made.py::test_b", 1),
    "exit 0 at once": ("def test_a(): os._exit(0)\ndef test_b(): pass", "2 test(s) unfinished", 0),
    "pytest.exit": ("def test_a(): pass\ndef test_b(): pytest.exit()", "1 test(s) unfinished", 1),
}


@pytest.mark.parametrize(("tests", "fault", "passed"), UNFINISHED.values(), ids=UNFINISHED)
def test_a_file_that_does_not_finish_fails(
    suite: MadeSuite, tests: str, fault: str, passed: int
) -> None:
    suite.add("test_made.py", tests)
    run = suite.run(*CPU)
    assert run.exit_code == FAILED, run
    assert fault in run.summary_of("test_made.py")
    assert run.totals == f"{passed} passed, 1 failed"


def test_timeout_stops_the_whole_process_group(suite: MadeSuite) -> None:
    suite.add(
        "test_hangs.py",
        "def test_first(): pass\n"
        "def test_hangs():\n"
        "    signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "    child = subprocess.Popen(['sleep', '300'])\n"
        "    Path('pids').write_text(f'{os.getpid()} {child.pid}')\n"
        "    time.sleep(300)\n",
    )
    suite.add("test_other.py")
    run = suite.run(*CPU, "--timeout-per-file", "5")
    assert run.exit_code == FAILED, run
    assert "timed out after 5 s in test_hangs.py::test_hangs" in run.summary_of("test_hangs.py")
    assert run.totals == "2 passed, 1 failed"
    pids = [int(pid) for pid in (suite.folder / "pids").read_text().split()]
    assert not any(map(is_running, pids))


def test_timeout_shows_where_a_test_hung(suite: MadeSuite) -> None:
    path = suite.add("test_hangs.py", "def test_hangs():\n    time.sleep(300)")
    line = path.read_text().splitlines().index("    time.sleep(300)") + 1
    run = suite.run(*CPU, "--timeout-per-file", "5")
    assert f"test_hangs.py:{line}: KeyboardInterrupt" in run.stdout
    assert run.totals == "0 passed, 1 failed"


def test_what_a_file_leaves_running_is_stopped(suite: MadeSuite) -> None:
    suite.add(
        "test_leaves.py",
        "def test_it():\n"
        "    child = subprocess.Popen(['sleep', '300'])\n"
        "    Path('pids').write_text(str(child.pid))\n",
    )
    assert suite.run(*CPU).exit_code == PASSED
    assert not is_running(int((suite.folder / "pids").read_text()))


def test_a_cancelled_suite_leaves_nothing_running(suite: MadeSuite) -> None:
    suite.add(
        "test_waits.py",
        "def test_it():\n    Path('pids').write_text(str(os.getpid()))\n    time.sleep(300)\n",
    )
    process = subprocess.Popen([*suite.command, *CPU], cwd=suite.folder)
    pids = suite.folder / "pids"
    deadline = time.monotonic() + 60
    while not (pids.exists() and pids.read_text()):
        assert time.monotonic() < deadline, "the test file did not start"
        time.sleep(0.05)
    process.terminate()
    assert process.wait(30) == 128 + signal.SIGTERM
    assert not is_running(int(pids.read_text()))


@pytest.mark.parametrize(
    ("arguments", "exit_code", "attempts", "totals"),
    [
        ((), FAILED, "x", "0 passed, 1 failed"),
        (("--retries", "2"), PASSED, "xx", "1 passed, 0 failed"),
    ],
    ids=["off by default", "2"],
)
def test_retries(
    suite: MadeSuite, arguments: tuple[str, ...], exit_code: int, attempts: str, totals: str
) -> None:
    suite.add(
        "test_flaky.py",
        "def test_flaky():\n"
        "    attempts = Path('attempts')\n"
        "    attempts.write_text('x' + (attempts.read_text() if attempts.exists() else ''))\n"
        "    assert attempts.read_text() == 'xx'\n",
    )
    run = suite.run(*CPU, *arguments)
    assert run.exit_code == exit_code, run
    assert run.totals == totals
    assert (suite.folder / "attempts").read_text() == attempts
    assert ("attempt 2" in run.summary_of("test_flaky.py")) == (attempts == "xx")


if __name__ == "__main__":
    run_file(__file__)
