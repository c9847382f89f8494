"""doctor where SGLang serves on an XPU, as it is and with a broken `sgl_kernel`. Simulated."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from sim_xpu import sim_environment

from sglang_moe_ext.ci import register_cpu_ci, run_file

register_cpu_ci(est_time=45, suite="base-a-test-cpu", nightly=True)


@pytest.fixture
def simulated_xpu() -> dict[str, str]:
    if not shutil.which("c++"):
        pytest.skip("the simulated XPU needs a C++ compiler (c++) to be built")
    return sim_environment()


def doctor(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sglang_moe_ext", "doctor", *arguments],
        env={k: v for k, v in environment.items() if not k.startswith(("SGLANG_", "PLAIN_CPU"))},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_kernels_of_an_xpu_serve_and_their_variants_are_named(
    simulated_xpu: dict[str, str],
) -> None:
    process = doctor(simulated_xpu)
    assert process.returncode == 0, process.stdout + process.stderr
    report = " ".join(process.stdout.split())
    assert "ok xpu simulated XPU" in report
    for line in ("topk_sigmoid variant S2", "moe_fused_gate variant F3", "biased_topk variant B1"):
        assert f"ok sgl_kernel.{line}" in report
    deepseek_v3 = "DeepSeek-V3, Ling 256/8 g8 tg4: sgl_kernel.moe_fused_gate (F3)"
    assert f"ok xpu: xpu {deepseek_v3}" in report


def test_a_broken_sgl_kernel_explains_itself(simulated_xpu: dict[str, str], tmp_path: Path) -> None:
    """SGLang imports it on XPU, so no server starts; the router alone could do without."""
    broken = tmp_path / "sgl_kernel" / "__init__.py"
    broken.parent.mkdir()
    broken.write_text("raise ImportError('common_ops.so: undefined symbol: _ZN2at4_ops')")
    path = os.pathsep.join([str(tmp_path), simulated_xpu["PYTHONPATH"]])
    process = doctor({**simulated_xpu, "PYTHONPATH": path}, "--json")
    assert process.returncode == 1, process.stderr
    checks = {check["name"]: check for check in json.loads(process.stdout)["checks"]}
    (failed,) = (check for check in checks.values() if check["status"] == "fail")
    assert failed["found"].startswith("SGLang itself does not start here, with or without us")
    assert f"undefined symbol: _ZN2at4_ops ({broken}, line 1)" in failed["found"]
    assert "reinstalling it for this PyTorch" in failed["remedy"]
    assert "undefined symbol: _ZN2at4_ops" in checks["sgl_kernel"]["found"]
    assert "built for PyTorch" in checks["sgl_kernel"]["remedy"]
    assert checks["xpu: torch"]["found"].startswith("DeepSeek-V3, Ling 256/8 g8 tg4; Kimi-K2")
    assert "not xpu: sgl_kernel cannot be used" in checks["xpu: torch"]["found"]
    assert "xpu: xpu" not in checks


if __name__ == "__main__":
    run_file(__file__)
