"""Where the routers of a family are, according to its configuration.

`..._layers` give the numbers of routed hidden layers, `..._mtp` the names with which the
tensors of routed multi-token-prediction layers begin.
"""

from __future__ import annotations

from collections.abc import Callable

from sglang_moe_ext.checkpoint.config import Config, Key, kinds_of_layers


def _layers(config: Config) -> int:
    return Key("num_hidden_layers").integer(config)


def after_dense(dense: int) -> Callable[[Config], list[int]]:
    """Routed layers follow the dense ones, `dense` of them unless the configuration says."""

    def moe_layers(config: Config) -> list[int]:
        kinds = kinds_of_layers(config, "mlp_layer_types")
        if kinds:
            return [i for i, kind in enumerate(kinds) if kind == "sparse"]
        first = Key("first_k_dense_replace", dense).integer(config)
        step = Key("moe_layer_freq", 1).integer(config) or 1
        return [i for i in range(first, _layers(config)) if i % step == 0]

    return moe_layers


def _nemotron_kinds(config: Config) -> list[str]:
    return kinds_of_layers(config, "layers_block_type", "hybrid_override_pattern")


def nemotron_layers(config: Config) -> list[int]:
    return [i for i, kind in enumerate(_nemotron_kinds(config)) if kind in ("moe", "E")]


def ernie_layers(config: Config) -> list[int]:
    end = config.get("moe_layer_end_index")
    last = _layers(config) - 1 if end in (None, -1) else Key("moe_layer_end_index").integer(config)
    first = Key("moe_layer_start_index", 1).integer(config)
    return list(range(first, last + 1, Key("moe_layer_interval", 1).integer(config) or 1))


def _mtp_count(config: Config) -> int:
    return Key("num_nextn_predict_layers", 0).integer(config)


def appended_mtp(config: Config) -> list[str]:
    """MTP layers numbered on after the last hidden layer."""
    first = _layers(config)
    return [f"layers.{i}." for i in range(first, first + _mtp_count(config))]


def hunyuan_v4_mtp(config: Config) -> list[str]:
    return [f"mtp_layers.{i}." for i in range(_mtp_count(config))]


def nemotron_mtp(config: Config) -> list[str]:
    pattern = kinds_of_layers(config, "mtp_layers_block_type", "mtp_hybrid_override_pattern")
    kinds = (pattern or ["attention", "moe"]) * _mtp_count(config)
    return [f"mtp.layers.{i}." for i, kind in enumerate(kinds) if kind in ("moe", "E")]


def layer_count(config: Config) -> int:
    """Hidden layers of the model."""
    # transformers ignores num_hidden_layers where the kinds of the layers are listed.
    return len(_nemotron_kinds(config)) or _layers(config)


def no_mtp(config: Config) -> list[str]:
    return []
