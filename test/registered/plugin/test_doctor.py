"""doctor gives a verdict: exit code, one line per check, a remedy where something is wrong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "releases"))

import fake_package
from test_support.stub_host import StubHost

from sglang_moe_ext.ci import register_cpu_ci, run_file
from sglang_moe_ext.doctor import router_checks
from sglang_moe_ext.ops import RouterSpec, choose
from sglang_moe_ext.patch_files import Release
from sglang_moe_ext.signatures import RELEASES

register_cpu_ci(est_time=50, suite="base-a-test-cpu")


@pytest.fixture
def host(tmp_path: Path) -> StubHost:
    return StubHost(tmp_path)


def doctor(host: StubHost, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("SGLANG_", "PLAIN_CPU"))}
    return subprocess.run(
        [sys.executable, "-m", "sglang_moe_ext", "doctor", *arguments],
        env={**clean, "PYTHONPATH": str(host.folder), **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def failures(process: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    checks = json.loads(process.stdout)["checks"]
    return {check["name"]: check for check in checks if check["status"] == "fail"}


def test_a_live_plugin_is_healthy(host: StubHost) -> None:
    process = doctor(host)
    assert process.returncode == 0, process.stdout
    assert "healthy" in process.stdout.splitlines()[-1]
    lines = [" ".join(line.split()) for line in process.stdout.splitlines()]
    assert "ok live: biased_grouped_topk_gpu resolves to us" in lines
    assert any(line.startswith("ok cpu: cpu DeepSeek-V3, Ling 256/8 g8 tg4;") for line in lines)
    assert "in reserve torch, reference" in process.stdout


def test_an_unknown_host_fails_with_a_remedy(host: StubHost) -> None:
    host.edit(host.topk, "topk_group=None,", "topk_group=None, temperature=1,")
    process = doctor(host, "--json")
    assert process.returncode == 1
    found = failures(process)
    assert "temperature" in found["signatures"]["found"]
    assert found["signatures"]["remedy"]
    assert "is NOT active" in found["live: biased_grouped_topk_gpu"]["remedy"]


def test_a_refusal_to_start_is_ours_and_says_how_to_start(host: StubHost) -> None:
    host.edit(host.topk, "topk_group=None,", "topk_group=None, temperature=1,")
    process = doctor(host, "--json", SGLANG_MOE_EXT_STRICT="1")
    assert process.returncode == 1
    live = failures(process)["live"]
    assert live["found"].startswith("with us, SGLang does not start here")
    assert "temperature" in live["found"]
    assert "SGLANG_MOE_EXT=0" in live["remedy"]


def test_an_sglang_that_does_not_import_is_not_blamed_on_us(host: StubHost) -> None:
    host.edit(host.topk, "recorded = []", "import not_installed")
    process = doctor(host, "--json")
    assert process.returncode == 1
    live = failures(process)["live"]
    assert live["found"].startswith("SGLang itself does not start here, with or without us")
    assert "No module named 'not_installed'" in live["found"]
    assert str(host.topk) in live["found"]
    assert "SGLANG_MOE_EXT=0" not in live["remedy"]


@pytest.mark.parametrize(
    ("environment", "check", "found"),
    [
        ({"SGLANG_PLUGINS": "another"}, "entry point moe_ext", "excluded by SGLANG_PLUGINS"),
        ({"SGLANG_MOE_EXT_STRCT": "1"}, "variables", "unknown variable SGLANG_MOE_EXT_STRCT"),
    ],
    ids=["excluded", "misspelt variable"],
)
def test_what_keeps_us_out_is_named(
    host: StubHost, environment: dict[str, str], check: str, found: str
) -> None:
    process = doctor(host, "--json", **environment)
    assert process.returncode == 1
    assert found in failures(process)[check]["found"]
    assert failures(process)[check]["remedy"]


def test_another_plugin_on_our_target_is_named(host: StubHost) -> None:
    host.add_plugin(
        "rival",
        "from sglang.srt.plugins.hook_registry import HookRegistry, HookType\n"
        "def register():\n"
        "    HookRegistry.register('sglang.srt.layers.moe.topk.biased_grouped_topk',\n"
        "                          lambda *a, **k: 'theirs', HookType.REPLACE)\n",
    )
    process = doctor(host, "--json")
    assert process.returncode == 1
    assert "by rival" in failures(process)["live: MoEGate"]["remedy"]


def test_a_wrapper_of_another_plugin_is_named_and_healthy(host: StubHost) -> None:
    host.add_plugin(
        "timer",
        "from sglang.srt.plugins.hook_registry import HookRegistry, HookType\n"
        "def register():\n"
        "    HookRegistry.register('sglang.srt.layers.moe.topk.biased_grouped_topk',\n"
        "                          lambda f, *a, **k: f(*a, **k), HookType.AROUND)\n",
    )
    process = doctor(host)
    assert process.returncode == 0, process.stdout
    assert "plugin timer has a hook of kind around on it, too" in process.stdout


def test_a_release_newer_than_any_tested_is_said(host: StubHost) -> None:
    host.set_release("0.9.0")
    process = doctor(host)
    assert process.returncode == 0, process.stdout
    assert "0.9.0, we were tested with {} to {}".format(*RELEASES) in process.stdout
    assert "look for a newer sglang-moe-ext" in process.stdout


def test_the_known_releases_are_the_recorded_ones() -> None:
    recorded = json.loads((fake_package.ROOT / "scripts" / "releases.json").read_text("utf-8"))
    releases = sorted(map(Release.parse, recorded))
    assert (str(releases[0]), str(releases[-1])) == RELEASES


def test_applied_patches_are_named(host: StubHost) -> None:
    shutil.rmtree(host.folder / "sglang/srt/plugins")  # the patch brings its own
    package = fake_package.make_package(host.folder / "sglang")
    host.set_release(fake_package.RELEASE)

    def found() -> str:
        checks = json.loads(doctor(host, "--json").stdout)["checks"]
        return next(check["found"] for check in checks if check["name"] == "patches")

    assert found() == "applied: none, 3 would fit this release"
    assert fake_package.run(package, "--series", "plugin", "--apply") == 0
    assert found() == "applied: 0.5.3-0.5.9/0001-load-plugins.patch"
    (package / fake_package.SCHEDULER).write_text("edited")
    assert "srt/managers/scheduler.py: the lines around" in found()


def test_without_sglang_it_says_what_to_install(host: StubHost) -> None:
    code = """
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "sglang" else find(name, *rest)
from sglang_moe_ext.cli import main
sys.exit(main(["doctor", "--json"]))
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.returncode == 1, process.stderr
    assert failures(process)["sglang"]["remedy"].startswith("install SGLang")
    assert any(c["name"] == "cpu: cpu" for c in json.loads(process.stdout)["checks"])


def test_without_torch_it_says_what_to_install(host: StubHost, tmp_path: Path) -> None:
    """-S hides site-packages: what is left is the standard library, SGLang and ourselves."""
    for name in ("sglang_moe_ext", "wrapt"):
        folder = Path(find_spec(name).origin).parent  # type: ignore
        (host.folder / name).symlink_to(folder)
    process = subprocess.run(
        [sys.executable, "-S", "-m", "sglang_moe_ext", "doctor", "--json"],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(host.folder)},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 1, process.stderr
    assert failures(process)["torch"]["remedy"].startswith("install the PyTorch")


@pytest.mark.parametrize(
    ("environment", "line"),
    [
        ({"SGLANG_MOE_EXT_DEVICES": "xpu"}, "left to SGLang by SGLANG_MOE_EXT_DEVICES=xpu"),
        ({"SGLANG_MOE_EXT_BACKEND": "torch"}, "cpu: torch"),
        ({"SGLANG_MOE_EXT_BACKEND": "triton"}, "backend 'triton' was forced but cannot route"),
    ],
    ids=["device not ours", "forced", "forced in vain"],
)
def test_variables_in_force_decide(host: StubHost, environment: dict[str, str], line: str) -> None:
    process = doctor(host, **environment)
    assert process.returncode == ("in vain" in line or "cannot" in line)
    assert line in " ".join(process.stdout.split()), process.stdout


def test_a_missing_compiler_is_a_warning_with_its_remedy(host: StubHost) -> None:
    (host.folder / "numba.py").write_text("raise ImportError('no numba here')")
    process = doctor(host, "--json")
    assert process.returncode == 0, process.stdout
    (check,) = [c for c in json.loads(process.stdout)["checks"] if c["name"] == "cpu: torch"]
    assert check["status"] == "warn"
    assert "not cpu: unusable: ImportError: no numba here" in check["found"]
    assert check["remedy"].startswith("pip install 'sglang-moe-ext[cpu]'")


def test_a_device_that_no_backend_serves_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "candidates", lambda device_type: ())
    check = router_checks._backend("cpu", RouterSpec(16, 4))
    assert check.status == "fail"
    assert "no backend can route 16/4 on cpu" in check.found
    assert "SGLANG_MOE_EXT_DEVICES without cpu" in check.remedy


if __name__ == "__main__":
    run_file(__file__)
