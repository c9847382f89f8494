"""Run files of `cases/` in a process that sees the simulated XPU."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sim_xpu import sim_environment

CASES = Path(__file__).with_name("cases")


def run_cases(
    *names: str, variant: str = "S2,F3,B1", mode: str = "strict", slack: bool = False
) -> None:
    """Fails unless every case of these files ran and passed; needs a C++ compiler."""
    if not shutil.which("c++"):
        pytest.skip("the simulated XPU needs a C++ compiler (c++) to be built")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *names],
        cwd=CASES,
        env=sim_environment(variant=variant, mode=mode, slack=slack),
        capture_output=True,
        text=True,
        timeout=550,
    )
    title = f"on the simulated XPU ({variant}, {mode}{', slack' if slack else ''})"
    assert run.returncode == 0, f"{names} failed {title}:\n{run.stdout[-6000:]}{run.stderr[-2000:]}"
    assert re.search(r"\d+ passed", run.stdout), f"no case ran {title}:\n{run.stdout[-2000:]}"
    assert "skipped" not in run.stdout, f"cases were skipped {title}:\n{run.stdout[-2000:]}"
