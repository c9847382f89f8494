"""Real servers of releases with plugins answer as the newest does, routed by us in the worker.

On the plain CPU platform, which SGLang offers from 0.5.14 on, with torch of the newest release.
"""

import sys
from collections import Counter
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "releases"))

from patched_server import TOKENS, generate, make_model, serve
from release_checks import ALL, package_of

from sglang_moe_ext import trace
from sglang_moe_ext.ci import register_cpu_ci, run_file

register_cpu_ci(est_time=200, suite="base-a-test-cpu", nightly=True)
pytestmark = pytest.mark.server

RELEASES = ["0.5.22", "0.5.21", "0.5.20", "0.5.16"]


def answer(release: str, model: Path, folder: Path) -> list[int]:
    environment = {"SGLANG_MOE_EXT_TRACE": str(folder / "trace"), "SGLANG_MOE_EXT_STRICT": "1"}
    with serve(release, model, folder, environment=environment) as server:
        return generate(server.url)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def newest(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[int]:
    """Tokens of the newest release."""
    package_of(ALL[-1])
    return answer(ALL[-1], model, tmp_path_factory.mktemp("newest"))


@pytest.mark.parametrize("release", RELEASES)
def test_same_tokens_by_our_router_and_gate(
    release: str, model: Path, newest: list[int], tmp_path: Path
) -> None:
    package_of(release)
    tokens = answer(release, model, tmp_path)
    assert tokens == newest
    assert len(tokens) == TOKENS
    loaders = Counter(path.read_text() for path in (tmp_path / "witness").iterdir())
    assert loaders["run_scheduler_process"] == 1
    routed = [record for record in trace.read(tmp_path / "trace") if record["calls"]]
    served = {(record["role"], record["what"], record["backend"]) for record in routed}
    assert served == {
        ("sglang::scheduler", "gate", "torch"),
        ("sglang::scheduler", "router", "cpu"),
    }


if __name__ == "__main__":
    run_file(__file__)
