"""The signatures that the plugin knows are those of the released files."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "releases"))

from release_checks import (
    PER_COMMIT,
    check_gate_signature,
    check_router_signature,
    check_update_signatures,
    package_of,
)

from sglang_moe_ext.ci import register_cpu_ci, run_file

register_cpu_ci(est_time=2, suite="base-a-test-cpu")


@pytest.mark.parametrize("release", PER_COMMIT)
def test_router(release: str) -> None:
    check_router_signature(package_of(release))


@pytest.mark.parametrize("release", PER_COMMIT)
def test_gate(release: str) -> None:
    check_gate_signature(package_of(release))


@pytest.mark.parametrize("release", PER_COMMIT)
def test_update_signatures(release: str) -> None:
    check_update_signatures(package_of(release))


if __name__ == "__main__":
    run_file(__file__)
