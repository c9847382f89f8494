"""The README's table of releases is what the compatibility suite found, for every release."""

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "releases"))

from release_checks import ALL, ROOT
from test_support.failure_cases import CASES

from sglang_moe_ext.ci import register_cpu_ci, run_file

sys.path.insert(0, str(ROOT / "scripts"))

from release_table import README, RESULTS, table, written

register_cpu_ci(est_time=2, suite="base-a-test-cpu")

RESULT = {
    "via": "plugin",
    "level": "server",
    "stand_ins": False,
    "live": True,
    "cases": [4, 4],
    "sweep": [6, 6],
    "ids": [8, 8],
    "ids_finished_by": "us",
    "gate": [2, 2],
    "patches": True,
}


def recorded() -> dict[str, dict[str, Any]]:
    return json.loads(RESULTS.read_text(encoding="utf-8"))


def test_the_readme_has_the_table_of_the_recorded_results() -> None:
    readme = README.read_text(encoding="utf-8")
    assert written(readme, recorded()) == readme, "run: python scripts/release_table.py"


def test_every_release_was_run_and_nothing_failed() -> None:
    results = recorded()
    assert list(results) == ALL
    for release, result in results.items():
        assert result["live"], release
        assert result["patches"], release
        for check in ("cases", "sweep", "ids", "gate"):
            passed, total = result[check]
            assert passed == total > 0, (release, check)


def test_the_recorded_runs_had_the_cases_of_today() -> None:
    outdated = [r for r, result in recorded().items() if result["cases"][1] != len(CASES)]
    assert not outdated, "run: python test/releases/compatibility.py"


def test_releases_share_a_row_only_where_all_is_the_same() -> None:
    failed = {**RESULT, "gate": [1, 2], "patches": False}
    lines = table({"1": RESULT, "2": RESULT, "3": failed, "4": RESULT}).splitlines()[2:]
    good = "plugin | server | yes | 10 of 10 | 8 of 8, restored | 2 of 2 | round trip"
    bad = "plugin | server | yes | 10 of 10 | 8 of 8, restored | 1 of 2 | FAILED"
    assert lines == [f"| 1 … 2 | {good} |", f"| 3 | {bad} |", f"| 4 | {good} |"]


if __name__ == "__main__":
    run_file(__file__)
