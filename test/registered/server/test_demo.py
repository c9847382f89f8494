"""The demo runs, one rank and two, and its failures are a message and a non-zero exit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from sglang_moe_ext.ci import register_cpu_ci, run_file

register_cpu_ci(est_time=110, suite="base-a-test-cpu")

ROOT = Path(__file__).parents[3]


def demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "demo.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=500)


def test_every_worker_routes_with_us_and_two_ranks_write_the_same() -> None:
    """The demo itself checks the texts, and that gate and router of every worker are ours."""
    result = demo()
    assert result.returncode == 0, result.stderr
    table = [line for line in result.stdout.splitlines() if line.startswith("  sglang::scheduler")]
    roles = [line.split()[0] for line in table]
    assert sorted(set(roles)) == [
        "sglang::scheduler",
        "sglang::scheduler_TP0",
        "sglang::scheduler_TP1",
    ]
    assert len(roles) == 2 * len(set(roles)), "one gate and one router per worker"


def test_a_missing_model_directory(tmp_path: Path) -> None:
    missing = tmp_path / "nowhere"
    result = demo("--model-path", str(missing))
    assert result.returncode == 1
    assert f"no checkpoint at {missing}: expected a directory with config.json" in result.stderr
    assert "make_checkpoint.py" in result.stderr


def test_a_checkpoint_that_cannot_be_served_ends_with_the_log(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    result = demo("--model-path", str(tmp_path), "--tp", "1")
    assert result.returncode == 1
    assert "the server ended with exit code" in result.stderr
    assert "Traceback" in result.stderr or "Error" in result.stderr


def test_help_says_what_it_does() -> None:
    result = demo("--help")
    assert result.returncode == 0
    assert "--device" in result.stdout
    assert "simulated" in result.stdout


if __name__ == "__main__":
    run_file(__file__)
