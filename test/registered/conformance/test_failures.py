"""Every failure class that can reach a router, against every router that runs here.

Each check goes through the operation and through the installed SGLang's select_experts with the
plugin live, in processes of their own (plain, Triton's interpreter, simulated XPU). On a CUDA
device: cuda/test_failures_cuda.py.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "scripts"))
from sim_xpu import sim_environment

from sglang_moe_ext.ci import register_cpu_ci, run_file

pytest.importorskip("sglang")
import conformance_table
from test_support.conformance import Results, run_groups
from test_support.conformance_columns import COLUMNS, NOT_RUN, WRONG, missing
from test_support.conformance_record import RECORDED, assert_as_recorded, parameters
from test_support.failure_checks import CHECKS
from test_support.failure_classes import FAILURE_CLASSES

register_cpu_ci(est_time=70, suite="base-a-test-cpu")

ROOT = conformance_table.ROOT
ON_CPU = ("plain", "interpreter", "simulated XPU")


@pytest.fixture(scope="module")
def results() -> Results:
    here = [group for group in ON_CPU if missing(group) is None]
    return run_groups(here, sim_environment(), timeout_s=580)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("check", "path", "column"), parameters(ON_CPU))
def test_failure_does_not_happen(results: Results, check: str, path: str, column: str) -> None:
    assert_as_recorded(results, check, path, column)


@pytest.mark.parametrize("failure", FAILURE_CLASSES)
def test_every_class_is_accounted_for(failure: str) -> None:
    """Run here, by a test that exists, or out of reach for a reason."""
    described = FAILURE_CLASSES[failure]
    is_run = any(check.failure == failure for check in CHECKS)
    assert is_run or described.tests or described.unreachable
    assert not (described.unreachable and (is_run or described.tests))
    for test in described.tests:
        file, _, name = test.partition("::")
        tree = ast.parse((ROOT / "test" / "registered" / file).read_text(encoding="utf-8"))
        assert name in [each.name for each in tree.body if isinstance(each, ast.FunctionDef)]


def test_every_backend_of_ours_runs_most_classes() -> None:
    """A backend that refused everything would be right everywhere."""
    for name, column in COLUMNS.items():
        if column.backend:
            classes = {check.failure for check in CHECKS}
            run = [c for c in classes if conformance_table.verdict_of(c, name, RECORDED) != NOT_RUN]
            assert len(run) >= len(classes) - 2, name


def test_the_record_has_these_checks_and_nothing_of_ours_is_wrong() -> None:
    assert {name: set(paths) for name, paths in RECORDED.items()} == {
        check.name: set(check.paths) for check in CHECKS
    }
    for name, paths in RECORDED.items():
        for columns in paths.values():
            assert set(columns) == set(COLUMNS), name
            assert WRONG not in [columns[c] for c in columns if COLUMNS[c].backend], name


def test_the_readme_shows_the_record() -> None:
    remedy = "run scripts/conformance_table.py"
    assert conformance_table.in_readme() == conformance_table.markdown(RECORDED), remedy


if __name__ == "__main__":
    run_file(__file__)
