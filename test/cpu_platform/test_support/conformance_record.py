"""What the checks of failure_checks.py are known to give, and the tests that hold a run to it.

The record, test/registered/conformance/results.json: check -> path -> column -> "ok", "wrong" or
"not run". SGLang's own routers are wrong where it says so; a fix of theirs shows as an unexpected
pass.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from test_support.conformance import Results
from test_support.conformance_columns import COLUMNS, GROUPS, WRONG, missing
from test_support.failure_checks import CHECKS

RESULTS = Path(__file__).parents[2] / "registered" / "conformance" / "results.json"


def load() -> Results:
    results: Results = json.loads(RESULTS.read_text(encoding="utf-8"))
    return results


RECORDED = load()


def save(results: Results) -> None:
    """Verdicts of one word each, which are the same at every run; other columns stay."""
    words = {
        check.name: {
            path: {
                column: verdict.partition(":")[0]
                for column, verdict in (
                    RECORDED.get(check.name, {}).get(path, {})
                    | results.get(check.name, {}).get(path, {})
                ).items()
                if column in COLUMNS
            }
            for path in check.paths
        }
        for check in CHECKS
    }
    RESULTS.write_text(json.dumps(words, indent=1) + "\n", encoding="utf-8")


def parameters(groups: Sequence[str]) -> list[object]:
    """A test per check, path and column of these groups; skipped where the machine lacks much."""
    found = []
    for check in CHECKS:
        for path in check.paths:
            for group in groups:
                reason = missing(group)
                for column in GROUPS[group]:
                    verdict = RECORDED.get(check.name, {}).get(path, {}).get(column)
                    marks = []
                    if reason:
                        marks = [pytest.mark.skip(reason=reason)]
                    elif COLUMNS[column].backend is None and verdict == WRONG:
                        marks = [pytest.mark.xfail(reason="known of SGLang 0.5.23", strict=True)]
                    test_id = f"{check.name}-{column}-{path}"
                    found.append(pytest.param(check.name, path, column, id=test_id, marks=marks))
    return found


def assert_as_recorded(results: Results, check: str, path: str, column: str) -> None:
    """Never wrong, and run wherever it was."""
    verdict = results[check][path][column]
    assert not verdict.startswith(WRONG), verdict
    recorded = RECORDED[check][path][column]
    assert verdict.partition(":")[0] == recorded, f"{verdict}; recorded: {recorded}"
