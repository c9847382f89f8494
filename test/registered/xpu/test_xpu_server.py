"""A real server on the simulated XPU: the tokens of transformers, routed by `sgl_kernel`.

Stock SGLang is served beside it where it routes wrongly. Simulated: the device, the
stand-in kernels and the attention run on the CPU; nothing here is about speed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from sim_xpu import sim_environment

from sglang_moe_ext.ci import register_cpu_ci, run_file

transformers = pytest.importorskip("transformers")
serving = pytest.importorskip("plain_cpu.serving", reason="test/cpu_platform is not installed")

register_cpu_ci(est_time=200, suite="base-a-test-cpu")

pytestmark = pytest.mark.server

ROOT = Path(__file__).resolve().parents[3]
PROMPTS = [[5, 9, 77, 120], [300, 301, 302, 11, 12], list(range(40, 60))]
NEW_TOKENS = 16
ONE_GROUP = ("--groups", "1", "--kept-groups", "1")
COMPILED_GROUPS = ("--experts", "128", "--groups", "4", "--kept-groups", "2", "--topk", "8")
OTHER_GROUPS = ("--groups", "4", "--kept-groups", "2")


def make_checkpoint(folder: Path, arguments: tuple[str, ...]) -> Path:
    script = ROOT / "scripts" / "make_checkpoint.py"
    subprocess.run([sys.executable, script, folder / "model", *arguments], check=True)
    return folder / "model"


def serve(model: Path, folder: Path, *, plugin: bool = True) -> tuple[list[list[int]], list[dict]]:
    """The server's tokens for each prompt and its trace's decisions about routing."""
    trace = folder / "trace"
    environment = {
        **sim_environment(),
        "SGLANG_PLATFORM": "",
        "SGLANG_PLUGINS": "moe_ext",  # keeps installed platforms from taking over
        "SGLANG_MOE_EXT": str(int(plugin)),
        "SGLANG_MOE_EXT_TRACE": str(trace),
    }
    arguments = ("--device", "xpu", "--dtype", "float32")
    with serving.Server(
        model, folder / "server.log", arguments=arguments, environment=environment
    ) as server:
        tokens = [generate(server.url, prompt) for prompt in PROMPTS]
    records = [json.loads(line) for path in trace.glob("*") for line in path.open()]
    return tokens, [r for r in records if r["event"] == "decision" and r["what"] == "router"]


def generate(url: str, prompt: list[int]) -> list[int]:
    sampling = {"temperature": 0, "max_new_tokens": NEW_TOKENS, "ignore_eos": True}
    body = json.dumps({"input_ids": prompt, "sampling_params": sampling}).encode()
    request = Request(f"{url}/generate", body, {"Content-Type": "application/json"})
    with urlopen(request, timeout=120) as answer:
        return json.load(answer)["output_ids"]


def tokens_of_transformers(model: Path) -> list[list[int]]:
    judge = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    outputs = [
        judge.generate(
            torch.tensor([prompt]), max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None
        )
        for prompt in PROMPTS
    ]
    return [o[0, len(p) :].tolist() for p, o in zip(PROMPTS, outputs, strict=True)]


@pytest.mark.parametrize(
    ("checkpoint", "operation"),
    [
        pytest.param(ONE_GROUP, "sgl_kernel.topk_sigmoid", id="one group"),
        pytest.param(COMPILED_GROUPS, "sgl_kernel.moe_fused_gate", id="128 experts in 4 groups"),
    ],
)
def test_served_by_a_kernel(checkpoint: tuple[str, ...], operation: str, tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path, checkpoint)
    tokens, decisions = serve(model, tmp_path)
    assert tokens == tokens_of_transformers(model)
    assert [d["backend"] for d in decisions] == ["xpu"]
    assert decisions[0]["detail"].startswith(operation)


def test_groups_that_no_kernel_serves(tmp_path: Path) -> None:
    """Stock SGLang hands 16 experts in 4 groups to a kernel that ignores the groups."""
    model = make_checkpoint(tmp_path, OTHER_GROUPS)
    expected = tokens_of_transformers(model)
    tokens, decisions = serve(model, tmp_path)
    assert tokens == expected
    assert "xpu" not in [d["backend"] for d in decisions]
    assert serve(model, tmp_path, plugin=False)[0] != expected


if __name__ == "__main__":
    run_file(__file__)
