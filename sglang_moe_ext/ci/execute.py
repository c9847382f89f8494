"""Runs one test file in a process group of its own and tells passed, skipped and failed apart."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from sglang_moe_ext.ci import record

GRACE_S = 5.0  # after SIGINT, for pytest to report where it hung and to run teardowns
PYTEST_NOTHING_COLLECTED = 5  # also when a whole module was skipped


@dataclass(frozen=True)
class Outcome:
    """What became of one file.

    passed, failed, skipped: tests (an expected failure counts as skipped). A fault of the
        whole file counts as one failed test.
    fault: why the file as a whole failed, such as a timeout; None if its tests tell all.
    skip_reason: one of them, if tests were skipped.
    seconds: wall-clock time. output: stdout and stderr.
    """

    passed: int
    failed: int
    skipped: int
    fault: str | None
    skip_reason: str | None
    seconds: float
    output: str

    @property
    def status(self) -> str:
        if self.failed:
            return "FAILED"
        return "passed" if self.passed else "all skipped"


def run_test_file(path: str, timeout: float, environment: Mapping[str, str]) -> Outcome:
    """Run a file as SGLang's runner does, `python path -f`, and read what pytest recorded.

    timeout: seconds. Then pytest is interrupted, so that it tells where it hung, and after
        GRACE_S everything in the file's process group is killed; so is, whatever happens,
        everything that the file leaves running in that group.
    """
    with tempfile.TemporaryDirectory(prefix="run_suite_") as folder:
        records, log = Path(folder, "records"), Path(folder, "output")
        plugin = ["-p", record.__name__, f"{record.OPTION}={records}"]
        start = time.monotonic()
        with log.open("wb") as stream:
            code = _run([sys.executable, path, "-f", *plugin], timeout, environment, stream)
        seconds = time.monotonic() - start
        verdicts, skip_reason = record.read_record(records)
        counts = Counter(verdicts.values())
        fault = _fault(code, verdicts, timeout)
        return Outcome(
            passed=counts["passed"],
            failed=counts["failed"] + bool(fault),
            skipped=counts["skipped"],
            fault=fault,
            skip_reason=skip_reason,
            seconds=seconds,
            output=log.read_text(encoding="utf-8", errors="replace"),
        )


def _run(
    command: list[str], timeout: float, environment: Mapping[str, str], stream: BinaryIO
) -> int | None:
    """The exit code, or None after a timeout."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=stream,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,
        # A shell's background job ignores SIGINT, and its children would, too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        return process.wait(timeout)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _fault(code: int | None, verdicts: Mapping[str, record.Verdict], timeout: float) -> str | None:
    running = "".join(f" in {test}" for test, verdict in verdicts.items() if verdict == "running")
    if code is None:
        return f"timed out after {timeout:g} s{running}"
    if code < 0:
        return f"killed by signal {-code} ({signal.strsignal(-code)}){running}"
    if not verdicts and code == PYTEST_NOTHING_COLLECTED:
        return "no test was collected"
    if not verdicts:
        return (
            f"exit code {code} before any test ran; did an import fail, "
            "or does its main block not call run_file(__file__)?"
        )
    unfinished = sum(verdict in ("waiting", "running") for verdict in verdicts.values())
    expected = code in (0, PYTEST_NOTHING_COLLECTED) and not unfinished
    if not expected and "failed" not in verdicts.values():
        return f"exit code {code} with {unfinished} test(s) unfinished{running}"
    return None
