"""The README's section on faults and load is what the script makes of the committed results."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

from test_support.faults import FAULTS, XPU_FAULTS

from sglang_moe_ext.ci import register_cpu_ci, run_file

register_cpu_ci(est_time=2, suite="base-a-test-cpu")

ROOT = Path(__file__).parents[3]


def test_the_readme_has_what_the_script_makes() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "faults_table.py"))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert script["updated"](readme) == readme


def test_every_fault_is_in_the_results() -> None:
    rows = json.loads((ROOT / "benchmarks" / "faults.json").read_text(encoding="utf-8"))
    names = [fault.what for fault in FAULTS.values()]
    names += [f"{fault.what} (simulated XPU)" for fault in XPU_FAULTS.values()]
    assert [name for name in names if name not in rows] == []


def test_the_soak_was_long_and_found_nothing() -> None:
    soak = json.loads((ROOT / "benchmarks" / "soak.json").read_text(encoding="utf-8"))
    assert soak["seconds"] >= 1200
    assert (soak["wrong"], soak["dropped"], soak["expected"]) == (0, 0, soak["routed"])


if __name__ == "__main__":
    run_file(__file__)
