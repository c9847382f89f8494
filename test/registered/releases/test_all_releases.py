"""Nightly: every release on the registry has known signatures and takes its patches."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "releases"))

from release_checks import (
    ALL,
    check_gate_signature,
    check_patches_round_trip,
    check_router_signature,
    check_update_signatures,
    package_of,
)

from sglang_moe_ext.ci import register_cpu_ci, run_file

register_cpu_ci(est_time=12, suite="base-a-test-cpu", nightly=True)


@pytest.mark.parametrize("release", ALL)
def test_router_signature(release: str) -> None:
    check_router_signature(package_of(release))


@pytest.mark.parametrize("release", ALL)
def test_gate_signature(release: str) -> None:
    check_gate_signature(package_of(release))


@pytest.mark.parametrize("release", ALL)
def test_patches_round_trip(release: str, tmp_path: Path) -> None:
    check_patches_round_trip(release, package_of(release), tmp_path)


@pytest.mark.parametrize("release", ALL)
def test_update_signatures(release: str) -> None:
    check_update_signatures(package_of(release))


if __name__ == "__main__":
    run_file(__file__)
