"""A real server refuses every defective checkpoint, and serves where the variable accepts it.

What stock SGLang 0.5.23 does with the same checkpoints (SGLANG_MOE_EXT=0, one request each;
"otherwise": it answers, with other tokens than from the healthy checkpoint):

    healthy                     serves
    bias missing                serves, otherwise: uninitialised memory routes
    bias misnamed               serves, otherwise
    bias too short              refuses: AssertionError, two shapes and no name
    bias [1, E]                 refuses: the same
    bias NaN                    serves, otherwise
    bias inf                    serves, otherwise
    bias merged by bfloat16     serves, otherwise
    bias int64                  serves, otherwise: cut to integers
    gate missing                serves, the same token again and again
    gate of another width       refuses: AssertionError, two shapes and no name
    gate in FP8                 serves, otherwise
    gate in FP8 with its scale  serves, otherwise; warns that it does not know the scale
    extra layers                serves
    shard absent                refuses: RuntimeError, names the shard
    file truncated              refuses: SafetensorError, no file
    header corrupt              refuses: SafetensorError, no file
    no config                   refuses: ValueError, names the directory
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from plain_cpu.serving import Server, ServerError
from test_support.defects import BIAS, DEFECTS, FILE_DEFECTS, SHARDS, make_defective

from sglang_moe_ext.ci import register_cpu_ci, run_file

register_cpu_ci(est_time=500, suite="base-a-test-cpu", nightly=True)

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


# What SGLang says before the weights reach us.
SGLANG_REFUSES = {
    "shard absent": f"missing from .*{SHARDS[1]}",
    "file truncated": "incomplete metadata, file not fully covered",
    "header corrupt": "Error while deserializing header",
    "no config": "Unrecognized model in .*config.json",
}


@pytest.mark.parametrize("name", SGLANG_REFUSES)
def test_sglang_refuses(healthy: Path, tmp_path: Path, name: str) -> None:
    path = make_defective(healthy, tmp_path, name)
    log = tmp_path / "server.log"
    config = path / "config.json"
    has_config = config.exists()
    config.touch()  # without one the test's Server itself would refuse
    server = Server(path, log)
    if not has_config:
        config.unlink()
    with pytest.raises(ServerError), server:
        pass
    assert re.search(SGLANG_REFUSES[name], log.read_text())


def test_extra_layers_are_harmless_and_named(healthy: Path, tmp_path: Path) -> None:
    path = make_defective(healthy, tmp_path, "extra layers")
    log = tmp_path / "server.log"
    with Server(path, log):
        pass
    _, name = FILE_DEFECTS["extra layers"]
    assert f"{name} is not loaded: config.json announces 3 layers" in log.read_text()


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
