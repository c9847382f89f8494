"""How a checkpoint routes and where: its family's row, filled in from its configuration."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from sglang_moe_ext.checkpoint.config import Config, ConfigError, Key
from sglang_moe_ext.checkpoint.families import FAMILIES, WRAPPERS, Family, family_of
from sglang_moe_ext.checkpoint.layers import layer_count


@dataclass(frozen=True, slots=True)
class Layer:
    """label: "3" or "61 mtp". path: what the names of its tensors begin with, dot included."""

    label: str
    path: str
    is_mtp: bool = False


@dataclass(frozen=True, slots=True)
class Routing:
    """The router that config.json describes; its numbers as in ops/spec.py.

    layers: hidden layers of the model. moe_layers: those that are routed. mtp_paths: where
    the routers of the MTP layers are. bias_shape: as the family stores it.
    reaches_router: SGLang calls the function that this package replaces.
    """

    family: Family
    model_type: str
    scoring: str
    has_bias: bool
    num_experts: int
    topk: int
    num_expert_group: int
    topk_group: int
    renormalize: bool
    routed_scaling_factor: float
    hidden_size: int
    layers: int
    moe_layers: tuple[int, ...]
    mtp_paths: tuple[str, ...]
    reaches_router: bool

    @property
    def kind(self) -> str:
        return f"{self.scoring} + bias" if self.has_bias else self.scoring

    @property
    def topk_routed(self) -> int:
        """As limits.py calls it: a checkpoint knows nothing of fused shared slots."""
        return self.topk

    @property
    def bias_shape(self) -> tuple[int, ...]:
        rows = self.family.bias_rows
        return (self.num_experts,) if rows is None else (rows, self.num_experts)


def unwrap(config: Config) -> Config:
    """The part that describes the language model."""
    if config.get("model_type") in WRAPPERS and isinstance(config.get("text_config"), dict):
        return dict(config["text_config"])
    return config


def routing_of(config: Config) -> Routing:
    """Read an unwrapped configuration. Raises ConfigError."""
    model_type = str(config.get("model_type"))
    family = family_of(model_type)
    if family is None:
        known = ", ".join(name for row in FAMILIES for name in row.model_types)
        raise ConfigError("model_type", f"{model_type}, not recognised", f"one of {known}")
    scoring = family.scoring(config)
    if scoring not in ("sigmoid", "softmax"):
        raise ConfigError("scoring function", f"{scoring}, not recognised", "sigmoid or softmax")
    moe_layers = tuple(family.moe_layers(config))
    if not moe_layers:
        raise ConfigError("layers", "none that is routed", "a mixture-of-experts model")
    routing = Routing(
        family=family,
        model_type=model_type,
        scoring=scoring,
        has_bias=family.has_bias(config),
        num_experts=family.experts.integer(config),
        topk=family.topk.integer(config),
        # SGLang reads 0 and null as one group.
        num_expert_group=family.groups.integer(config) or 1,
        topk_group=family.topk_group.integer(config) or 1,
        renormalize=family.renormalize.flag(config),
        routed_scaling_factor=float(family.factor.number(config)),
        hidden_size=Key("hidden_size").integer(config),
        layers=layer_count(config),
        moe_layers=moe_layers,
        mtp_paths=tuple(family.mtp(config)),
        reaches_router=scoring == "sigmoid"
        and family.has_bias(config)
        and family.reaches_router(config),
    )
    E, G, TG = routing.num_experts, routing.num_expert_group, routing.topk_group
    if E % G or not 1 <= TG <= G:
        raise ConfigError(
            f"{family.groups.name}, {family.topk_group.name}",
            f"{G} groups of which {TG} are kept",
            f"a divisor of the {E} experts, and at most as many",
        )
    if not 1 <= routing.topk <= TG * (E // G):
        raise ConfigError(
            family.topk.name, str(routing.topk), f"1..{TG * (E // G)}, the experts in kept groups"
        )
    return routing


def routed_layers(routing: Routing, names: Collection[str]) -> list[Layer]:
    """The layers that must hold a router, multi-token-prediction layers last.

    `names`, of the checkpoint's tensors, decide which of the family's prefixes is in use.
    """
    prefix = _prefix(routing.family, names)
    layers = [Layer(str(i), f"{prefix}layers.{i}.") for i in routing.moe_layers]
    for path in routing.mtp_paths:
        # Nemotron's stand beside the model, not in it.
        path = path if any(name.startswith(path) for name in names) else prefix + path
        number = re.findall(r"\d+", path)[-1]
        layers.append(Layer(f"{number} mtp", path, is_mtp=True))
    return layers


def surplus_routers(routing: Routing, names: Collection[str]) -> list[tuple[str, str]]:
    """Layers that hold a router although config.json expects none: (number, a tensor's name)."""
    expected = {layer.path for layer in routed_layers(routing, names)}
    tails = "|".join(re.escape(tail) for tail in routing.family.gate + routing.family.bias)
    prefix = re.escape(_prefix(routing.family, names))
    pattern = re.compile(rf"({prefix}layers\.(\d+)\.)(?:{tails})")
    found: dict[str, str] = {}
    for name in sorted(names):
        match = pattern.fullmatch(name)
        if match and match[1] not in expected:
            found.setdefault(match[2], name)
    return sorted(found.items(), key=lambda item: int(item[0]))


def _prefix(family: Family, names: Collection[str]) -> str:
    for prefix in family.prefixes:
        if any(name.startswith(f"{prefix}layers.") for name in names):
            return prefix
    return family.prefixes[0]
