"""A real server of a release without plugins: patched, it loads ours where the models run.

On a plain CPU, with torch of the newest release and stand-ins for sgl_kernel and vllm; older
releases than these cannot serve there (see the README's table of releases).
"""

import sys
from collections import Counter
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "releases"))

from patched_server import TOKENS, generate, make_model, serve
from plain_cpu.serving import ServerError
from release_checks import package_of

from sglang_moe_ext import trace
from sglang_moe_ext.ci import register_cpu_ci, run_file

register_cpu_ci(est_time=90, suite="base-a-test-cpu", nightly=True)

RELEASES = ["0.5.9", "0.5.10.post1"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("checkpoint"))


@pytest.mark.server
@pytest.mark.parametrize("release", RELEASES)
def test_plugin_routes_in_the_worker(release: str, model: Path, tmp_path: Path) -> None:
    package_of(release)
    decisions = tmp_path / "trace"
    environment = {"SGLANG_MOE_EXT_TRACE": str(decisions), "SGLANG_MOE_EXT_STRICT": "1"}
    with serve(release, model, tmp_path, environment=environment) as server:
        assert len(generate(server.url)) == TOKENS
    loaders = Counter(path.read_text() for path in (tmp_path / "witness").iterdir())
    assert loaders == {"<module>": 1, "run_scheduler_process": 1}
    routed = [record for record in trace.read(decisions) if record["calls"]]
    assert routed, "no worker traced a routing call"
    assert {record["device"] for record in routed} == {"cpu"}


@pytest.mark.server
def test_unpatched_release_loads_nothing(model: Path, tmp_path: Path) -> None:
    release = RELEASES[0]
    package_of(release)
    decisions = tmp_path / "trace"
    environment = {"SGLANG_MOE_EXT_TRACE": str(decisions)}
    with (
        pytest.raises(ServerError, match="Expected size for first two dimensions"),
        serve(release, model, tmp_path, environment=environment, patched=False),
    ):
        pass
    assert not list((tmp_path / "witness").iterdir())
    assert not decisions.exists()


if __name__ == "__main__":
    run_file(__file__)
