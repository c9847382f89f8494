"""The plugin is live and right beside real releases: the newest, 0.5.16 and a patched 0.5.9."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "releases"))

from compatibility import examine, problems
from release_checks import PER_COMMIT, package_of

from sglang_moe_ext.ci import register_cpu_ci, run_file

register_cpu_ci(est_time=75, suite="base-a-test-cpu")


@pytest.mark.parametrize("release", PER_COMMIT)
def test_live_and_right(release: str) -> None:
    package_of(release)
    assert problems(examine(release, up_to="model")) == []


if __name__ == "__main__":
    run_file(__file__)
