"""A minute of load: every streamed token as when asked alone, each one in the trace."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from test_support.load import check, soak

from sglang_moe_ext.ci import register_cpu_ci, run_file

register_cpu_ci(est_time=105, suite="base-a-test-cpu")

pytestmark = pytest.mark.server

ROOT = Path(__file__).parents[3]


def test_a_minute(tmp_path: Path) -> None:
    model = tmp_path / "checkpoint"
    subprocess.run([sys.executable, ROOT / "scripts" / "make_checkpoint.py", model], check=True)
    summary = soak(model, tmp_path, seconds=60, prompts=48)
    print(summary.as_dict())
    assert check(summary) == []
    assert summary.backends == ["cpu"]
    assert summary.requests >= 16
    assert summary.cached_tokens > 0
    assert summary.memory_last_mib - summary.memory_first_mib < 16


if __name__ == "__main__":
    run_file(__file__)
