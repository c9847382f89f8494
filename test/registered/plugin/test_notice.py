"""One message per reason: per process, and per server where a launcher and its workers agree."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sglang_moe_ext.ci import register_cpu_ci, run_file
from sglang_moe_ext.notice import describe

register_cpu_ci(est_time=2, suite="base-a-test-cpu")

PROGRAM = """
import multiprocessing, subprocess, sys
from sglang_moe_ext import notice

def worker():
    notice.once(print, "the same")
    notice.once(print, "of the worker")

if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)
    for _ in range(2):
        notice.once(print, "the same")
    for _ in range(2):
        process = multiprocessing.get_context("spawn").Process(target=worker)
        process.start()
        process.join()
    if "again" not in sys.argv:
        subprocess.run([sys.executable, __file__, "again"], check=True)
"""


@pytest.fixture
def said(tmp_path: Path) -> list[str]:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    clean = {k: v for k, v in os.environ.items() if not k.startswith("_SGLANG")}
    command = [sys.executable, str(program)]
    process = subprocess.run(command, env=clean, capture_output=True, text=True, timeout=60)
    assert process.returncode == 0, process.stderr
    return process.stdout.splitlines()


def test_workers_do_not_repeat_their_launcher_but_another_server_does(said: list[str]) -> None:
    server = ["the same", "of the worker", "of the worker"]
    assert said == server * 2


def test_a_page_of_an_error_becomes_a_line() -> None:
    line = describe(ValueError("failed\n\n   in a\n" + "long " * 500 + "way"))
    assert line.startswith("ValueError: failed in a long")
    assert line.endswith("…")
    assert len(line) < 450
    assert describe(KeyError("x")) == "KeyError: 'x'"


if __name__ == "__main__":
    run_file(__file__)
