"""A real server refuses every defective checkpoint, and serves where the variable accepts it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from plain_cpu.serving import Server, ServerError
from test_support.defects import BIAS, DEFECTS, make_defective

from sglang_moe_ext.ci import register_cpu_ci, run_file

register_cpu_ci(est_time=420, suite="base-a-test-cpu", nightly=True)

pytestmark = pytest.mark.server

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("healthy") / "checkpoint"
    script = ROOT / "scripts" / "make_checkpoint.py"
    subprocess.run([sys.executable, script, path, "--experts", "64"], check=True)
    return path


@pytest.mark.parametrize("name", DEFECTS)
def test_the_server_refuses(healthy: Path, tmp_path: Path, name: str) -> None:
    path = make_defective(healthy, tmp_path, name)
    log = tmp_path / "server.log"
    with pytest.raises(ServerError), Server(path, log):
        pass
    assert re.search(DEFECTS[name][1].replace("[", r"\["), log.read_text())


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("bias missing", "zero", "filled with zeros"),
        ("bias NaN", "zero", "filled with zeros"),
        ("bias merged by bfloat16", "warn", "accepted by SGLANG_MOE_EXT_BIAS=warn"),
    ],
)
def test_the_variable_accepts(
    healthy: Path, tmp_path: Path, name: str, value: str, message: str
) -> None:
    path = make_defective(healthy, tmp_path, name)
    log = tmp_path / "server.log"
    with Server(path, log, environment={"SGLANG_MOE_EXT_BIAS": value}):
        pass
    assert re.search(f"{BIAS}.*{message}", log.read_text())


if __name__ == "__main__":
    run_file(__file__)
