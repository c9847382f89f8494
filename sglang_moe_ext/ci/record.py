"""A pytest plugin that writes each test's verdict down at once, and reads such records.

`pytest -p sglang_moe_ext.ci.record --record-verdicts=FILE`: unlike a report written at the
end, FILE tells after a crash, a kill or an `os._exit(0)` which tests had passed, which one was
running and which ones were still waiting.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    import pytest

OPTION = "--record-verdicts"
Verdict = Literal["waiting", "running", "skipped", "passed", "failed"]


class Record(NamedTuple):
    """verdicts: by test, or by module where its collection failed or was skipped."""

    verdicts: dict[str, Verdict]
    skip_reason: str | None


def read_record(path: Path) -> Record:
    """What was recorded; nothing at all if the plugin never ran."""
    record = Record({}, None)
    if not path.exists():
        return record
    for line in path.read_text(encoding="utf-8").splitlines():
        test, verdict, reason = json.loads(line)
        # A test reports up to three times (setup, call, teardown): any failure is its verdict.
        if record.verdicts.get(test) != "failed":
            record.verdicts[test] = verdict
        record = record._replace(skip_reason=reason or record.skip_reason)
    return record


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(OPTION, type=Path, metavar="FILE", help="write each test's verdict here")


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption(OPTION)
    if path is not None:
        config.pluginmanager.register(_Recorder(path))


class _Recorder:
    def __init__(self, path: Path) -> None:
        self.path = path

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            self._write(item.nodeid, "waiting")

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._write(nodeid, "running")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or not report.passed:
            self._write(report.nodeid, report.outcome, _skip_reason(report))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if not report.passed:
            self._write(report.nodeid, report.outcome, _skip_reason(report))

    def _write(self, test: str, verdict: Verdict, reason: str | None = None) -> None:
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps([test, verdict, reason]) + "\n")


def _skip_reason(report: pytest.TestReport | pytest.CollectReport) -> str | None:
    if report.skipped and isinstance(report.longrepr, tuple):
        return report.longrepr[2].removeprefix("Skipped: ")
    return None
