"""Which tensors route in which model family, and which configuration keys say how.

Names, keys and defaults as in SGLang 0.5.23 (srt/models/<file>, named per row) and
transformers 5.19.0 (configuration_*.py, conversion_mapping.py). What is not in the table is
not recognised: nothing here guesses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sglang_moe_ext.checkpoint.config import Config, Key
from sglang_moe_ext.checkpoint.layers import (
    after_dense,
    appended_mtp,
    ernie_layers,
    hunyuan_v4_mtp,
    nemotron_layers,
    nemotron_mtp,
    no_mtp,
)

_EXPERTS, _TOPK = Key("n_routed_experts"), Key("num_experts_per_tok")
_GROUPS, _TOPK_GROUP = Key("n_group", 1), Key("topk_group", 1)
_FACTOR, _RENORMALIZE = Key("routed_scaling_factor", 1.0), Key("norm_topk_prob", True)
_FIXED = Key("", 1)  # no key: 1, or true, whatever the configuration says
_AFTER_DENSE = after_dense(0)


def _sigmoid(config: Config) -> str:
    return "sigmoid"


def _softmax(config: Config) -> str:
    return "softmax"


def _scoring_func(config: Config) -> str:
    return str(config.get("scoring_func") or "sigmoid")


def _bailing_scoring(config: Config) -> str:
    return str(config.get("score_function") or ("sigmoid" if _bailing_bias(config) else "softmax"))


def _bailing_bias(config: Config) -> bool:
    return bool(config.get("moe_router_enable_expert_bias"))


def _noaux_tc(default: str) -> Callable[[Config], bool]:
    return lambda config: (config.get("topk_method") or default) == "noaux_tc"


@dataclass(frozen=True, slots=True)
class Family:
    """One row; the defaults are those of DeepSeek-V3.

    has_bias: does this configuration route with a correction bias? gate, bias: accepted names
    below the layer, the usual one first. norm: the RMSNorm before the gate. bias_rows: 1 if
    the bias is stored as [1, E]. prefixes: what may stand before "layers.N.". mtp: prefixes of
    the multi-token-prediction layers. reaches_router: does SGLang route this configuration
    through `biased_grouped_topk`, the function that this package replaces?
    """

    name: str
    model_types: tuple[str, ...]
    experts: Key = _EXPERTS
    topk: Key = _TOPK
    groups: Key = _GROUPS
    topk_group: Key = _TOPK_GROUP
    factor: Key = _FACTOR
    renormalize: Key = _RENORMALIZE
    scoring: Callable[[Config], str] = _sigmoid
    has_bias: Callable[[Config], bool] = lambda config: True
    moe_layers: Callable[[Config], list[int]] = _AFTER_DENSE
    mtp: Callable[[Config], list[str]] = appended_mtp
    gate: tuple[str, ...] = ("mlp.gate.weight",)
    bias: tuple[str, ...] = ("mlp.gate.e_score_correction_bias",)
    norm: str = "post_attention_layernorm.weight"
    bias_rows: int | None = None
    prefixes: tuple[str, ...] = ("model.",)
    reaches_router: Callable[[Config], bool] = lambda config: True


FAMILIES = (
    # deepseek_v2.py, deepseek_common/deepseek_weight_loader.py; the prefixes: kimi_k25.py
    Family(
        "DeepSeek-V3, Kimi-K2",
        ("deepseek_v3", "deepseek_v32", "kimi_k2", "kimi_k25"),
        groups=Key("n_group", 8),
        topk_group=Key("topk_group", 4),
        factor=Key("routed_scaling_factor", 2.5),
        scoring=_scoring_func,
        has_bias=_noaux_tc("noaux_tc"),
        moe_layers=after_dense(3),
        prefixes=("model.", "language_model.model.", "language_model."),
    ),
    Family(
        "DeepSeek-V2",
        ("deepseek_v2",),
        scoring=lambda config: str(config.get("scoring_func") or "softmax"),
        has_bias=_noaux_tc("greedy"),
        renormalize=Key("norm_topk_prob", False),
    ),
    # glm4_moe.py (GlmMoeDsaForCausalLM too, a deepseek_v2.py subclass)
    Family(
        "GLM-5",
        ("glm_moe_dsa",),
        factor=Key("routed_scaling_factor", 2.5),
        scoring=_scoring_func,
        has_bias=_noaux_tc("noaux_tc"),
        moe_layers=after_dense(3),
    ),
    # glm4_moe.py, glm4_moe_lite.py
    Family("GLM-4.5", ("glm4_moe",), moe_layers=after_dense(1)),
    Family("GLM-4.7-Flash", ("glm4_moe_lite",), moe_layers=after_dense(1)),
    # minimax_m2.py: never grouped, always renormalised, no MTP weights loaded
    Family(
        "MiniMax-M2",
        ("minimax_m2",),
        experts=Key("num_local_experts"),
        groups=_FIXED,
        topk_group=_FIXED,
        factor=_FIXED,
        renormalize=_FIXED,
        scoring=_scoring_func,
        has_bias=lambda config: bool(config.get("use_routing_bias")),
        mtp=no_mtp,
        gate=("block_sparse_moe.gate.weight",),
        bias=("block_sparse_moe.e_score_correction_bias",),
        reaches_router=lambda config: False,
    ),
    # nemotron_h.py, nemotron_h_mtp.py, configs/nemotron_h.py
    Family(
        "Nemotron-3",
        ("nemotron_h",),
        moe_layers=nemotron_layers,
        mtp=nemotron_mtp,
        gate=("mixer.gate.weight",),
        bias=("mixer.gate.e_score_correction_bias",),
        norm="norm.weight",
        prefixes=("backbone.", "model."),
    ),
    # bailing_moe.py, bailing_moe_linear.py, bailing_moe_v3.py
    Family(
        "Bailing, Ling",
        ("bailing_moe", "bailing_moe_v2", "bailing_hybrid"),
        experts=Key("num_experts"),
        scoring=_bailing_scoring,
        has_bias=_bailing_bias,
        bias=("mlp.gate.expert_bias",),
        reaches_router=lambda config: bool(config.get("n_group")),
    ),
    # hunyuan_v3.py: never grouped; it drops "router." from the gate's name
    Family(
        "Hunyuan 3",
        ("hy_v3",),
        experts=Key("num_experts"),
        groups=_FIXED,
        topk_group=_FIXED,
        factor=Key("router_scaling_factor", 1.0),
        renormalize=Key("route_norm", True),
        gate=("mlp.router.gate.weight", "mlp.gate.weight"),
        bias=("mlp.expert_bias",),
    ),
    # hunyuan_v4.py, configs/hy_v4.py: a deepseek_v2.py subclass
    Family(
        "Hunyuan 4",
        ("hy_v4",),
        groups=_FIXED,
        topk_group=_FIXED,
        factor=Key("routed_scaling_factor", 2.827),
        moe_layers=after_dense(1),
        mtp=hunyuan_v4_mtp,
    ),
    # hunyuan.py: it drops "wg." from the gate's name
    Family(
        "Hunyuan 1",
        ("hunyuan_v1_moe",),
        experts=Key("num_experts"),
        topk=Key("moe_topk"),
        groups=_FIXED,
        topk_group=_FIXED,
        factor=_FIXED,
        renormalize=_FIXED,
        scoring=_softmax,
        has_bias=lambda config: False,
        gate=("mlp.gate.wg.weight", "mlp.gate.weight"),
        reaches_router=lambda config: False,
    ),
    # ernie4.py: softmax, bias of shape [1, E], "moe_statics" renamed to "gate"
    Family(
        "ERNIE 4.5",
        ("ernie4_5_moe",),
        experts=Key("moe_num_experts"),
        topk=Key("moe_k"),
        groups=_FIXED,
        topk_group=_FIXED,
        factor=_FIXED,
        renormalize=_FIXED,
        scoring=_softmax,
        moe_layers=ernie_layers,
        mtp=no_mtp,
        bias=(
            "mlp.moe_statics.e_score_correction_bias",
            "mlp.gate.e_score_correction_bias",
        ),
        bias_rows=1,
        reaches_router=lambda config: False,
    ),
)
# Configurations that keep the routing in "text_config".
WRAPPERS = ("kimi_k25",)


def family_of(model_type: str) -> Family | None:
    return next((family for family in FAMILIES if model_type in family.model_types), None)
