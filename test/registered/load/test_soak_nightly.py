"""Twenty minutes of load; the checks of `test_soak.py`, and memory that doesn't grow."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_support.load import check, soak

from sglang_moe_ext.ci import register_cpu_ci, run_file

register_cpu_ci(est_time=1320, suite="base-a-test-cpu", nightly=True)

# The load alone takes longer than any other test may.
pytestmark = [pytest.mark.server, pytest.mark.timeout(2400)]

ROOT = Path(__file__).parents[3]
SECONDS = float(os.environ.get("SOAK_SECONDS", "1200"))


def test_twenty_minutes(tmp_path: Path) -> None:
    model = tmp_path / "checkpoint"
    subprocess.run([sys.executable, ROOT / "scripts" / "make_checkpoint.py", model], check=True)
    summary = soak(model, tmp_path, seconds=SECONDS)
    print(summary.as_dict())
    assert check(summary) == []
    assert summary.memory_last_mib - summary.memory_first_mib < 16
    assert summary.memory_mib_per_hour < 24


if __name__ == "__main__":
    run_file(__file__)
