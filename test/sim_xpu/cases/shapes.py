"""The ten model shapes of the routing survey, and which operation should serve them."""

from __future__ import annotations

from typing import NamedTuple


class Shape(NamedTuple):
    """bias_offset: where the public checkpoint's correction biases lie."""

    model: str
    experts: int
    topk: int
    groups: int = 1
    kept: int = 1
    bias_offset: float = 0.0


SHAPES = (
    Shape("DeepSeek-V3", 256, 8, 8, 4),
    Shape("Ling / Bailing", 256, 8, 8, 4),
    Shape("Kimi-K2", 384, 8),
    Shape("Kimi-K3", 896, 16),
    Shape("GLM-4.5-Air", 128, 8),
    Shape("GLM-4.5", 160, 8),
    Shape("GLM-5", 256, 8, bias_offset=6.8),
    Shape("MiniMax-M2", 256, 8),
    Shape("Nemotron-3-Nano", 128, 6),
    Shape("Nemotron-3-Super", 512, 22),
)
# Kernel variants as installed together, newest first; "S2,F3" is release v0.1.0.
INSTALLATIONS = ("S2,F3,B1", "S2,F3", "S1,F1", "S1a,F2", "S0,F0")


def expected_operation(shape: Shape, installation: str) -> str | None:
    """By hand from the operations' limits, independent of the backend's table."""
    has = installation.split(",")
    if shape.groups > 1:
        return "moe_fused_gate" if {"F1", "F2", "F3"} & set(has) else None
    if shape.topk <= 8 and shape.experts <= 256 and {"S1", "S2"} & set(has):
        return "topk_sigmoid"
    if shape.topk <= 16 and shape.experts <= 512 and "B1" in has:
        return "biased_topk"
    return None
