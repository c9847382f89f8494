"""A made SGLang source tree with the parts that the plugin touches, to be broken at will.

The plugin system in it is the installed SGLang's own; only the model code is made.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

TOPK = """
from types import SimpleNamespace
from sglang.srt.environ import IMPORTED
IMPORTED.append(__name__)

def biased_grouped_topk_gpu(
    hidden_states, gating_output, correction_bias, topk, renormalize, num_expert_group=None,
    topk_group=None, num_fused_shared_experts=0, routed_scaling_factor=None,
    apply_routed_scaling_factor_on_output=False,
):
    return "stock"

biased_grouped_topk = biased_grouped_topk_gpu

_is_cuda = _is_hip = False

def topk_ids_logical_to_physical(topk_ids, info):
    return topk_ids if info is None else info[topk_ids]

def _post_process_topk_ids(
    topk_ids, topk_weights, topk_config, router_logits, layer_id, num_token_non_padded=None,
    expert_location_dispatch_info=None, padded_rows_masked=False,
):
    recorded.append(topk_ids)
    if _is_cuda:
        raise AssertionError
    elif _is_hip:
        raise AssertionError
    else:
        topk_ids = topk_ids_logical_to_physical(topk_ids, expert_location_dispatch_info)
        if num_token_non_padded is not None:
            topk_ids[num_token_non_padded:] = -1
    return topk_ids, topk_weights, topk_ids

recorded = []

def select_experts(hidden_states, router_logits, bias, valid_rows=None, info=None):
    routed = biased_grouped_topk(
        hidden_states=hidden_states, gating_output=router_logits, correction_bias=bias, topk=2,
        renormalize=True, num_expert_group=1, topk_group=1,
    )
    if routed == "stock":
        return routed
    config = SimpleNamespace(use_grouped_topk=True, num_fused_shared_experts=0)
    ids, weights, _ = _post_process_topk_ids(
        topk_ids=routed[1], topk_weights=routed[0], topk_config=config,
        router_logits=router_logits, layer_id=0, num_token_non_padded=valid_rows,
        expert_location_dispatch_info=info,
    )
    return weights, ids
"""

DEEPSEEK_V2 = """
import torch
from sglang.srt.environ import IMPORTED
IMPORTED.append(__name__)

class MoEGate(torch.nn.Module):
    def __init__(self, config, quant_config, prefix="", is_hash_moe=False, is_deepseek_v4=False,
                 vl_correction_bias=False):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(4, 8, dtype=torch.bfloat16))
        self.e_score_correction_bias = None
        if config.topk_method == "noaux_tc" and not is_hash_moe:
            self.e_score_correction_bias = torch.nn.Parameter(torch.zeros(4, dtype=torch.bfloat16))

    def forward(self, hidden_states, gemm_output_zero_allocator=None, forward_batch=None):
        return torch.nn.functional.linear(hidden_states, self.weight)

class DeepseekV2MoE(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.gate = MoEGate(config, None)
"""

LOADER = """
from sglang.srt.environ import IMPORTED
IMPORTED.append(__name__)

def _initialize_model(model_config, load_config, quant_config=None):
    return model_config.model

class DefaultModelLoader:
    def load_model(self, model_config):
        return _initialize_model(model_config, None)
"""

UPDATER = """
from sglang.srt.environ import IMPORTED
IMPORTED.append(__name__)

class WeightUpdater:
    def update_weights_from_tensor(self, named_tensors, load_format=None):
        if load_format == "direct":
            _model_load_weights_direct(self.model, named_tensors)
        else:
            self.model.load_weights(named_tensors)
        return True, "Success"

def _model_load_weights_direct(model, named_tensors):
    parameters = dict(model.named_parameters())
    for name, tensor in named_tensors:
        parameters[name].data.copy_(tensor)
"""

ENVIRON = """
import os
IMPORTED = []

class _Variable:
    def __init__(self, name):
        self.name = name
    def get(self):
        return os.environ.get(self.name, "")

class envs:
    SGLANG_PLUGINS = _Variable("SGLANG_PLUGINS")
    SGLANG_PLATFORM = _Variable("SGLANG_PLATFORM")
"""

PROBE = """
import json, logging, sys, types
logging.basicConfig(level=logging.INFO, stream=sys.stderr)
from sglang.srt.plugins import load_plugins
load_plugins()
from sglang.srt.environ import IMPORTED
imported_by_loading = list(IMPORTED)
import torch
from sglang.srt.layers.moe import topk
from sglang.srt.models import deepseek_v2
AGAIN
model = deepseek_v2.DeepseekV2MoE(types.SimpleNamespace(topk_method="noaux_tc"))
hidden = torch.ones(3, 8, dtype=torch.bfloat16)
logits = model.gate(hidden)
routed = topk.select_experts(hidden, logits, torch.arange(4.0))
print(json.dumps({
    "imported_by_loading": imported_by_loading,
    "router": "stock" if routed == "stock" else routed[1].tolist(),
    "gate": type(model.gate).__name__,
    "logits": str(logits.dtype),
    "bias": str(model.gate.e_score_correction_bias.dtype),
    "bias_trains": model.gate.e_score_correction_bias.requires_grad,
}))
"""

OURS = {
    "router": [[3, 2]] * 3,
    "gate": "DeepseekV2MoeGate",
    "logits": "torch.float32",
    "bias": "torch.float32",
    "bias_trains": False,
}
STOCK = {
    "router": "stock",
    "gate": "MoEGate",
    "logits": "torch.bfloat16",
    "bias": "torch.bfloat16",
    "bias_trains": True,
}


class StubHost:
    """A tree under `folder`; `edit` breaks it, `probe` loads plugins in a fresh process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        moe, models = folder / "sglang/srt/layers/moe", folder / "sglang/srt/models"
        loader = folder / "sglang/srt/model_loader"
        components = folder / "sglang/srt/model_executor/model_runner_components"
        for package in (moe, models, loader, components):
            package.mkdir(parents=True)
            while package != folder:
                (package / "__init__.py").write_text("")
                package = package.parent
        (folder / "sglang/srt/environ.py").write_text(ENVIRON)
        self.topk, self.deepseek_v2 = moe / "topk.py", models / "deepseek_v2.py"
        self.topk.write_text(TOPK)
        self.deepseek_v2.write_text(DEEPSEEK_V2)
        (loader / "loader.py").write_text(LOADER)
        self.weight_updater = components / "weight_updater.py"
        self.weight_updater.write_text(UPDATER)
        (installed,) = importlib.util.find_spec("sglang").submodule_search_locations  # type: ignore
        shutil.copytree(
            Path(installed) / "srt/plugins",
            folder / "sglang/srt/plugins",
            ignore=shutil.ignore_patterns("__pycache__"),
        )

    def edit(self, path: Path, old: str, new: str) -> None:
        text = path.read_text()
        assert old in text, f"{old!r} is not in {path.name}"
        path.write_text(text.replace(old, new))

    def add_plugin(self, name: str, source: str) -> None:
        add_plugin(self.folder, name, source)

    def set_release(self, version: str) -> None:
        """What this tree says its release is; without it, what is installed says so."""
        info = self.folder / f"sglang-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: sglang\nVersion: {version}\n")

    def probe(self, again: str = "", **environment: str) -> Probe:
        """Load plugins, build the model, route once. `again` runs after the imports."""
        return run_python(PROBE.replace("AGAIN", again), self.folder, environment)


def add_plugin(folder: Path, name: str, source: str) -> None:
    """Into `folder`, a second distribution with a plugin `name`; `register` is in `source`."""
    (folder / f"{name}.py").write_text(source)
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[sglang.srt.plugins]\n{name} = {name}:register\n")


class Probe:
    """What a fresh process reported: its JSON line, exit code and log."""

    def __init__(self, process: subprocess.CompletedProcess[str]) -> None:
        self.code, self.log = process.returncode, process.stderr
        lines = process.stdout.splitlines()
        self.report: dict[str, Any] = json.loads(lines[-1]) if self.code == 0 and lines else {}

    def errors(self) -> list[str]:
        return [line for line in self.log.splitlines() if "is NOT active" in line]

    def is_like(self, expected: dict[str, Any]) -> bool:
        return {key: self.report.get(key) for key in expected} == expected


def run_python(code: str, path: Path | None, environment: dict[str, str]) -> Probe:
    """Run code in a fresh process with none of our variables but the given ones."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("SGLANG_", "PLAIN_CPU"))}
    if path is not None:
        clean["PYTHONPATH"] = str(path)
    process = subprocess.run(
        [sys.executable, "-c", code],
        env={**clean, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return Probe(process)
