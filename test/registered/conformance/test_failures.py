"""Every failure class that can reach a router, against every router that runs here.

Each check goes through the operation and through the installed SGLang's select_experts with the
plugin live, in processes of their own (plain, Triton's interpreter, simulated XPU). SGLang's own
routers fail where results.json says so; a fix of theirs shows as an unexpected pass.
"""

from __future__ import annotations

import ast
import json
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "scripts"))
from sim_xpu import sim_environment

from sglang_moe_ext.ci import register_cpu_ci, run_file

pytest.importorskip("sglang")
import conformance_table
from test_support.conformance import COLUMNS, GROUPS, NOT_RUN, WRONG, Results, run_groups
from test_support.failure_checks import CHECKS
from test_support.failure_classes import FAILURE_CLASSES

register_cpu_ci(est_time=70, suite="base-a-test-cpu")

ROOT = conformance_table.ROOT
RECORDED: Results = json.loads(conformance_table.RESULTS.read_text(encoding="utf-8"))
HAS_COMPILER = bool(shutil.which("c++"))  # the simulated XPU is built with it


@pytest.fixture(scope="module")
def results() -> Results:
    groups = tuple(g for g in GROUPS if HAS_COMPILER or g != "simulated XPU")
    return run_groups(groups, sim_environment(), timeout_s=580)


def parameters() -> list[object]:
    found = []
    for check in CHECKS:
        for path in check.paths:
            for name, column in COLUMNS.items():
                marks = []
                recorded = RECORDED.get(check.name, {}).get(path, {}).get(name)
                if column.backend is None and recorded == WRONG:
                    marks = [pytest.mark.xfail(reason="known of SGLang 0.5.23", strict=True)]
                if name == "xpu" and not HAS_COMPILER:
                    marks = [pytest.mark.skip(reason="the simulated XPU needs a C++ compiler")]
                test_id = f"{check.name}-{name}-{path}"
                found.append(pytest.param(check.name, path, name, id=test_id, marks=marks))
    return found


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("check", "path", "column"), parameters())
def test_failure_does_not_happen(results: Results, check: str, path: str, column: str) -> None:
    verdict = results[check][path][column]
    assert not verdict.startswith(WRONG), verdict
    recorded = RECORDED[check][path][column]
    assert verdict.partition(":")[0] == recorded, f"{verdict}; recorded: {recorded}"


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
