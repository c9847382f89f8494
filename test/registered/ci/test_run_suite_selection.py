"""scripts/run_suite.py chooses files and hardware, and refuses to run nothing at all."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from sglang_moe_ext.ci import register_cpu_ci, run_file

if TYPE_CHECKING:
    from conftest import MadeSuite, SuiteRun

register_cpu_ci(est_time=10, suite="base-a-test-cpu")

CPU = ("--hw", "cpu", "--suite", "base-a-test-cpu")
XPU = ("--hw", "xpu", "--suite", "stage-b-test-1-gpu-xpu")
PASSED, NOTHING_RAN = 0, 2


@pytest.fixture
def suites(suite: MadeSuite) -> MadeSuite:
    """Seven files by day, one by night, one disabled, one for XPU."""
    for i in range(7):
        registration = f'register_cpu_ci(est_time={i + 1}, suite="base-a-test-cpu")'
        suite.add(f"test_{i}.py", registration=registration)
    for name, registration in {
        "test_night.py": 'register_cpu_ci(9, "base-a-test-cpu", nightly=True)',
        "test_off.py": 'register_cpu_ci(9, "base-a-test-cpu", disabled="needs a model")',
        "test_xpu.py": 'register_xpu_ci(9, stage="stage-b", runner_config="1-gpu-xpu")',
    }.items():
        suite.add(name, registration=registration)
    return suite


def listed(run: SuiteRun) -> list[str]:
    assert run.exit_code == PASSED, run
    return re.findall(r"^ *\d+ s  (\S+\.py)$", run.stdout, re.M)


def test_list_shows_one_suite_the_longest_first(suites: MadeSuite) -> None:
    run = suites.run(*CPU, "--list")
    assert listed(run) == [f"test_{i}.py" for i in reversed(range(7))]
    assert "disabled: test_off.py: needs a model" in run.stdout
    assert "28 s  estimated for 7 file(s)" in run.stdout
    assert listed(suites.run(*CPU, "--nightly", "--list")) == ["test_night.py"]
    assert listed(suites.run(*XPU, "--list")) == ["test_xpu.py"]


def test_shares_hold_each_file_once(suites: MadeSuite) -> None:
    shares = [
        listed(
            suites.run(*CPU, "--list", "--auto-partition-id", share, "--auto-partition-size", "3")
        )
        for share in "012"
    ]
    names = Counter(name for share in shares for name in share)
    assert names == Counter(f"test_{i}.py" for i in range(7))
    assert all(shares)


NOTHING_SELECTED = {
    "no such suite": (
        ("--hw", "cpu", "--suite", "base-b-test-cpu"),
        "no enabled file is registered for cpu base-b-test-cpu; cpu has base-a-test-cpu (8), "
        "base-a-test-cpu --nightly (1)",
    ),
    "no file for the hardware": (
        ("--hw", "cuda", "--suite", "base-b-test-1-gpu-large", "--nightly"),
        "no enabled file is registered for cuda base-b-test-1-gpu-large --nightly; cuda has no s",
    ),
    "empty share": (
        (*CPU, "--auto-partition-id", "8", "--auto-partition-size", "9"),
        "share 8 of 9 is empty: the suite has 7 file(s)",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), NOTHING_SELECTED.values(), ids=NOTHING_SELECTED)
def test_nothing_selected(suites: MadeSuite, arguments: tuple[str, ...], message: str) -> None:
    run = suites.run(*arguments)
    assert run.exit_code == NOTHING_RAN
    assert message in run.stderr
    assert run.totals == "0 passed, 0 failed"


def test_everything_skipped(suite: MadeSuite) -> None:
    suite.add("test_skip.py", "pytestmark = pytest.mark.skip('no XPU')\ndef test_it(): pass")
    run = suite.run(*CPU)
    assert run.exit_code == NOTHING_RAN
    assert "every test was skipped: nothing ran on cpu" in run.stderr
    assert run.totals == "0 passed, 0 failed, 1 skipped"


def test_bad_registrations_are_all_listed(suite: MadeSuite) -> None:
    suite.add("test_good.py")
    suite.add("test_if.py", registration='if True:\n    register_cpu_ci(5, "s")')
    suite.add("test_typo.py", registration='register_cpu_ci(5, "base-a-tset-cpu")')
    run = suite.run(*CPU)
    assert run.exit_code == NOTHING_RAN
    assert "3 problem(s) with registrations" in run.stderr
    assert "test_if.py:6: register_cpu_ci is used inside an `if`" in run.stderr
    assert "test_typo.py:5: unknown cpu suite 'base-a-tset-cpu'" in run.stderr
    assert run.totals == "0 passed, 0 failed"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--auto-partition-id", "0"), "go together"),
        (("--auto-partition-id", "2", "--auto-partition-size", "2"), "found 2, expected 0 to 1"),
        (("--retries", "-1"), "--retries: found -1, expected 0 or more"),
        (("--timeout-per-file", "0"), "--timeout-per-file: found 0.0, expected"),
        (("--simulated",), "only --hw xpu has a simulated device"),
    ],
    ids=["half a partition", "no such share", "retries", "timeout", "simulated CPU"],
)
def test_usage(suite: MadeSuite, arguments: tuple[str, ...], message: str) -> None:
    run = suite.run(*CPU, *arguments)
    assert run.exit_code == 2
    assert message in run.stderr


@pytest.fixture
def xpu_suite(suite: MadeSuite) -> MadeSuite:
    suite.add(
        "test_xpu.py",
        "import torch\n"
        "def test_device():\n"
        "    assert torch.ones(2, device='xpu').device.type == 'xpu'\n",
        registration='register_xpu_ci(est_time=600, suite="stage-b-test-1-gpu-xpu")',
    )
    return suite


def test_hardware_that_is_not_there(xpu_suite: MadeSuite) -> None:
    run = xpu_suite.run(*XPU)
    if run.exit_code == PASSED:
        pytest.skip("this machine has an XPU, and the suite ran on it")
    assert run.exit_code == NOTHING_RAN
    assert "no xpu device here (torch.xpu.device_count() is 0)" in run.stderr
    assert "or pass --simulated" in run.stderr
    assert run.totals == "0 passed, 0 failed"


def test_simulated_hardware(xpu_suite: MadeSuite) -> None:
    run = xpu_suite.run(*XPU, "--simulated")
    assert run.exit_code == PASSED, run
    assert run.totals == "1 passed, 0 failed"
    assert run.stdout.splitlines()[0].startswith("SIMULATED: ")
    assert run.stdout.splitlines()[-2] == "SIMULATED: no XPU hardware took part"
    assert "hint:" not in run.stdout


if __name__ == "__main__":
    run_file(__file__)
