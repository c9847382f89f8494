"""doctor gives a verdict: exit code, one line per check, a remedy where something is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_support.stub_host import StubHost

from sglang_moe_ext.ci import register_cpu_ci, run_file

register_cpu_ci(est_time=40, suite="base-a-test-cpu")


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
    assert "live: biased_grouped_topk_gpu        resolves to us" in process.stdout
    assert "cpu: DeepSeek-V3, Ling 256/8 g8 tg4  cpu" in process.stdout


def test_an_unknown_host_fails_with_a_remedy(host: StubHost) -> None:
    host.edit(host.topk, "topk_group=None,", "topk_group=None, temperature=1,")
    process = doctor(host, "--json")
    assert process.returncode == 1
    found = failures(process)
    assert "temperature" in found["signatures"]["found"]
    assert found["signatures"]["remedy"]
    assert "is NOT active" in found["live: biased_grouped_topk_gpu"]["remedy"]


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


if __name__ == "__main__":
    run_file(__file__)
