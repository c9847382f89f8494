"""Live or stock, never between: every way that hooking SGLang can fail, on a made host."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_support.stub_host import OURS, STOCK, StubHost

from sglang_moe_ext.ci import register_cpu_ci, run_file

register_cpu_ci(est_time=90, suite="base-a-test-cpu")

STRICT = {"SGLANG_MOE_EXT_STRICT": "1"}


@pytest.fixture
def host(tmp_path: Path) -> StubHost:
    return StubHost(tmp_path)


def test_router_and_gate_are_ours_and_loading_imports_no_model_code(host: StubHost) -> None:
    probe = host.probe(**STRICT)
    assert probe.is_like(OURS), probe.log
    assert probe.report["imported_by_loading"] == []
    assert "is live: gate and router are ours" in probe.log


def test_model_code_that_was_imported_before_is_overridden_too(host: StubHost) -> None:
    host.add_plugin(
        "aaa_early",
        "import sys\n"
        "def register():\n"
        "    import sglang.srt.layers.moe.topk as topk, sglang.srt.models.deepseek_v2 as v2\n"
        "    sys.modules['kimi'] = kimi = type(sys)('kimi')\n"
        "    kimi.MoEGate, kimi.route = v2.MoEGate, topk.biased_grouped_topk_gpu\n",
    )
    probe = host.probe(
        again="import sys; k = sys.modules['kimi']\n"
        "assert k.MoEGate is deepseek_v2.MoEGate and k.route is topk.biased_grouped_topk",
        SGLANG_PLUGINS="aaa_early,moe_ext",
    )
    assert probe.is_like(OURS), probe.log


def test_registering_again_changes_nothing(host: StubHost) -> None:
    probe = host.probe(
        again="before = topk.biased_grouped_topk, deepseek_v2.MoEGate\n"
        "import sglang_moe_ext.plugin as plugin\n"
        "plugin.register(); plugin.register.cache_clear(); plugin.register()\n"
        "assert before == (topk.biased_grouped_topk, deepseek_v2.MoEGate)\n"
        "from sglang_moe_ext.installation import ORIGINAL\n"
        "assert all(not hasattr(getattr(x, ORIGINAL), ORIGINAL) for x in before)",
    )
    assert probe.is_like(OURS), probe.log


def test_a_model_of_many_gates_says_once_that_we_are_live(host: StubHost) -> None:
    config = "types.SimpleNamespace(topk_method='noaux_tc')"
    probe = host.probe(again=f"for _ in 'ab': deepseek_v2.DeepseekV2MoE({config})")
    assert probe.is_like(OURS), probe.log
    assert probe.log.count("is live") == 1


def test_what_is_taken_after_loading_is_seen_when_a_model_is_built(host: StubHost) -> None:
    probe = host.probe(again="topk.biased_grouped_topk = lambda *args, **kwargs: 'stock'")
    assert probe.report["router"] == "stock"
    (error,) = probe.errors()
    assert "topk.biased_grouped_topk is <function <lambda>" in error


def test_what_replaces_the_router_is_no_wrapper_of_it(host: StubHost) -> None:
    """It would be taken for a plugin's wrapper around SGLang's; and rows that differ are named."""
    probe = host.probe(
        again="assert not hasattr(topk.biased_grouped_topk, '__wrapped__')\n"
        "try:\n"
        "    two, three, bias = torch.ones(2, 8), torch.zeros(3, 4), torch.zeros(4)\n"
        "    topk.biased_grouped_topk(two, three, bias, 2, True)\n"
        "except ValueError as error:\n"
        "    assert 'gating_output has 3 rows, expected 2' in str(error)\n"
        "else:\n"
        "    raise AssertionError('routed')"
    )
    assert probe.is_like(OURS), probe.log


def test_a_wrapper_around_what_we_withdrew_reaches_sglang(host: StubHost) -> None:
    probe = host.probe(
        again="import functools\nours = topk.biased_grouped_topk\n"
        "topk.biased_grouped_topk = functools.wraps(ours)(lambda *a, **k: ours(*a, **k))\n"
        "from sglang_moe_ext.overrides import INSTALLED; INSTALLED.refuse(['a test'])"
    )
    assert probe.is_like(STOCK), probe.log


def test_a_refusal_is_said_once_whatever_follows(host: StubHost) -> None:
    probe = host.probe(
        again="from sglang_moe_ext.overrides import INSTALLED\n"
        "INSTALLED.refuse(['one reason']); INSTALLED.refuse(['another'])"
    )
    assert probe.is_like(STOCK), probe.log
    (error,) = probe.errors()
    assert "one reason" in error


def test_switched_off_is_stock(host: StubHost) -> None:
    probe = host.probe(SGLANG_MOE_EXT="0")
    assert probe.is_like(STOCK), probe.log
    assert probe.errors() == []


def test_excluded_by_sglang_is_stock_and_sglang_says_so(host: StubHost) -> None:
    """Nothing of ours runs, so the word is SGLang's; `doctor` names the remedy."""
    probe = host.probe(SGLANG_PLUGINS="another", **STRICT)
    assert probe.is_like(STOCK), probe.log
    assert probe.log.count("Skipping plugin moe_ext (not in SGLANG_PLUGINS)") == 1
    assert probe.errors() == []


def test_another_platform_does_not_switch_us_off(host: StubHost) -> None:
    probe = host.probe(SGLANG_PLATFORM="some_platform", **STRICT)
    assert probe.is_like(OURS), probe.log
    assert probe.errors() == []


BROKEN = {
    "router renamed": (
        "topk",
        "biased_grouped_topk_gpu",
        "biased_grouped_topk_cuda",
        "biased_grouped_topk_gpu does not exist",
    ),
    "alias gone": (
        "topk",
        "routed = biased_grouped_topk(",
        "routed = globals()['biased_grouped_topk'](",
        "select_experts does not call biased_grouped_topk",
    ),
    "parameter added": (
        "topk",
        "renormalize, num_expert_group",
        "renormalize, temperature=1, num_expert_group",
        "takes (hidden_states, gating_output, correction_bias, topk, renormalize, temperature,",
    ),
    "parameters reordered": (
        "topk",
        "gating_output, correction_bias, topk,",
        "correction_bias, gating_output, topk,",
        "takes (hidden_states, correction_bias, gating_output,",
    ),
    "updates renamed": (
        "weight_updater",
        "update_weights_from_tensor",
        "update_weights",
        "WeightUpdater.update_weights_from_tensor does not exist",
    ),
    "gate renamed": ("deepseek_v2", "MoEGate", "Gate", "does not call MoEGate"),
    "gate takes more": ("deepseek_v2", 'prefix=""', 'prefix="", tp=1', "prefix, tp, is_hash_moe"),
    "gate no longer built": (
        "deepseek_v2",
        "self.gate = MoEGate(config, None)",
        "self.gate = globals()['MoEGate'](config, None)",
        "DeepseekV2MoE does not call MoEGate",
    ),
}


UPDATES = """
from sglang.srt.model_executor.model_runner_components import weight_updater
from sglang_moe_ext.overrides import INSTALLED, TARGETS
def ours():
    return {INSTALLED.reaches(target) for target in TARGETS
            if target.module == weight_updater.__name__}
assert ours() == {True}
INSTALLED.refuse(["a test"])
assert ours() == {False}
"""


def test_updates_are_ours_until_we_withdraw(host: StubHost) -> None:
    probe = host.probe(again=UPDATES)
    assert probe.is_like(STOCK), probe.log


@pytest.mark.parametrize("name", BROKEN)
def test_an_unknown_host_stays_stock_and_says_why_once(host: StubHost, name: str) -> None:
    file, old, new, message = BROKEN[name]
    host.edit(getattr(host, file), old, new)
    probe = host.probe()
    assert probe.report.get("router") == "stock", probe.log
    assert probe.report["logits"] == "torch.bfloat16"
    (error,) = probe.errors()
    assert message in error
    assert "expected" in error


@pytest.mark.parametrize("name", BROKEN)
def test_an_unknown_host_ends_the_process_under_strict(host: StubHost, name: str) -> None:
    file, old, new, message = BROKEN[name]
    host.edit(getattr(host, file), old, new)
    probe = host.probe(**STRICT)
    assert probe.code == 1
    assert message in probe.log


def test_a_moved_module_stays_stock(host: StubHost) -> None:
    host.deepseek_v2.rename(host.deepseek_v2.with_name("deepseek_v3.py"))
    (host.folder / "sglang/srt/models/__init__.py").write_text(
        "import sys\nfrom sglang.srt.models import deepseek_v3 as deepseek_v2\n"
        "sys.modules[__name__ + '.deepseek_v2'] = deepseek_v2\n"
    )
    probe = host.probe()
    assert probe.is_like(STOCK), probe.log
    (error,) = probe.errors()
    assert "sglang.srt.models.deepseek_v2 has no source file" in error


def test_a_moved_class_stays_stock(host: StubHost) -> None:
    text = host.deepseek_v2.read_text()
    start, end = text.index("class MoEGate"), text.index("class DeepseekV2MoE")
    host.deepseek_v2.with_name("gates.py").write_text("import torch\n" + text[start:end])
    imported = "from sglang.srt.models.gates import MoEGate\n\n"
    host.deepseek_v2.write_text(text[:start] + imported + text[end:])
    probe = host.probe()
    assert probe.is_like(STOCK), probe.log
    (error,) = probe.errors()
    assert "sglang.srt.models.deepseek_v2.MoEGate does not exist" in error
    assert host.probe(**STRICT).code == 1


ROUTER = "sglang.srt.layers.moe.topk.biased_grouped_topk"
GATE = "sglang.srt.models.deepseek_v2.MoEGate"
REPLACERS = {
    ROUTER: """
from sglang.srt.plugins.hook_registry import HookRegistry, HookType
def theirs(*args, **kwargs):
    return "stock"
def register():
    HookRegistry.register("sglang.srt.layers.moe.topk.biased_grouped_topk", theirs,
                          HookType.REPLACE)
""",
    GATE: """
import torch
from sglang.srt.plugins.hook_registry import HookRegistry, HookType
class TheirGate(torch.nn.Module):
    def __init__(self, config, quant_config):
        super().__init__()
        self.e_score_correction_bias = torch.nn.Parameter(torch.zeros(4, dtype=torch.bfloat16))
    def forward(self, hidden_states):
        return hidden_states[:, :4]
def register():
    HookRegistry.register("sglang.srt.models.deepseek_v2.MoEGate", TheirGate, HookType.REPLACE)
""",
}


@pytest.mark.parametrize("target", REPLACERS, ids=["router", "gate"])
@pytest.mark.parametrize("name", ["aaa_other", "zzz_other"], ids=["before us", "after us"])
def test_a_second_plugin_on_our_target_leaves_no_half(
    host: StubHost, name: str, target: str
) -> None:
    host.add_plugin(name, REPLACERS[target])
    probe = host.probe()
    gate = "TheirGate" if target == GATE else "MoEGate"
    assert probe.is_like({**STOCK, "gate": gate}), probe.log
    (error,) = probe.errors()
    assert f"replaced: {target} by {name}" in error


def test_a_second_plugin_on_other_targets_is_welcome(host: StubHost) -> None:
    theirs = REPLACERS[ROUTER].replace("topk.biased_grouped_topk", "topk._unused")
    host.topk.write_text(host.topk.read_text() + "\ndef _unused(): pass\n")
    host.add_plugin("other", theirs)
    probe = host.probe()
    assert probe.is_like(OURS), probe.log
    assert probe.errors() == []


@pytest.mark.parametrize("target", REPLACERS, ids=["router", "gate"])
def test_a_second_plugin_on_our_target_ends_the_process_under_strict(
    host: StubHost, target: str
) -> None:
    host.add_plugin("other", REPLACERS[target])
    probe = host.probe(**STRICT)
    assert probe.code == 1
    assert "by other" in probe.log


@pytest.mark.parametrize("name", ["aaa_timer", "zzz_timer"], ids=["before us", "after us"])
def test_a_wrapper_around_our_router_is_welcome(host: StubHost, name: str) -> None:
    host.add_plugin(
        name,
        "from sglang.srt.plugins.hook_registry import HookRegistry, HookType\n"
        "CALLS = []\n"
        "def around(original, *args, **kwargs):\n"
        "    CALLS.append(1)\n"
        "    return original(*args, **kwargs)\n"
        "def register():\n"
        "    HookRegistry.register('sglang.srt.layers.moe.topk.biased_grouped_topk', around,\n"
        "                          HookType.AROUND)\n",
    )
    probe = host.probe(
        again="import atexit\n"
        f"import {name}\n"
        f"atexit.register(lambda: print('wrapper calls', len({name}.CALLS), file=sys.stderr))"
    )
    assert probe.is_like(OURS), probe.log
    assert "wrapper calls 1" in probe.log


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("SGLANG_MOE_EXT_BACKEND", "fastest", "is 'fastest', expected auto, reference, torch"),
        ("SGLANG_MOE_EXT_DEVICES", "cpu,gpu", "is 'cpu,gpu', expected a comma-separated list of"),
        ("SGLANG_MOE_EXT_STRCT", "1", "unknown variable SGLANG_MOE_EXT_STRCT; known are"),
    ],
)
def test_a_malformed_variable_is_an_error(
    host: StubHost, variable: str, value: str, message: str
) -> None:
    probe = host.probe(**{variable: value})
    assert probe.is_like(STOCK), probe.log
    (error,) = probe.errors()
    assert message in error
    assert "failed" not in error  # nothing of ours did
    assert host.probe(**{variable: value}, **STRICT).code == 1


def test_a_forced_backend_that_cannot_serve_does_not_fall_back(host: StubHost) -> None:
    probe = host.probe(SGLANG_MOE_EXT_BACKEND="triton")
    assert probe.code == 1
    assert "backend 'triton' was forced but cannot route 4/2: no Triton for cpu" in probe.log


def test_model_dtype_logits_on_request(host: StubHost) -> None:
    probe = host.probe(SGLANG_MOE_EXT_GATE_LOGITS="model")
    assert probe.is_like({**OURS, "logits": "torch.bfloat16"}), probe.log


@pytest.mark.parametrize(
    "environment",
    [{"SGLANG_MOE_EXT_DEVICES": "xpu"}, {"SGLANG_MOE_EXT_BACKEND": "upstream"}],
    ids=["device not ours", "upstream forced"],
)
def test_calls_that_are_not_ours_reach_the_original(
    host: StubHost, environment: dict[str, str]
) -> None:
    probe = host.probe(**environment)
    assert probe.is_like({**OURS, "router": "stock"}), probe.log


if __name__ == "__main__":
    run_file(__file__)
