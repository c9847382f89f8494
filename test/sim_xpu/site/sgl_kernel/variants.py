"""Which kernel versions the stand-in has, and their literal schemas.

`SIM_XPU_VARIANT` lists one name per family, a family left out is absent. Commits are
those of sgl-kernel-xpu:

| variant | commits | what differs |
|---|---|---|
| S0 | before e8670ada | no `topk_sigmoid` |
| S1a | e8670ada to 318fa6d6 | 5 arguments; no float32 logits |
| S1 | a2467427 to 9647e179 | 5 arguments; float32 logits; NaN where the scores sum to 0 |
| S2 | from 9647e179, and v0.1.0 | factor and one shared slot |
| F0 | before cff40041 | `moe_fused_gate` wrapper without an operation |
| F1 | cff40041 to 79fdda65 | 8 arguments, always renormalises |
| F2 | 79fdda65 to 6a211ffc | 10 arguments, in another order |
| F3 | from 6a211ffc, and v0.1.0 | the bias is optional |
| B0, B1 | before, from 2542f5f4 | without, with `biased_topk` |
"""

from __future__ import annotations

import os

FAMILIES = {"S": ("S0", "S1a", "S1", "S2"), "F": ("F0", "F1", "F2", "F3"), "B": ("B0", "B1")}
MODES = ("strict", "faithful")

_SIGMOID = (
    "topk_sigmoid(Tensor! topk_weights, Tensor! topk_indices, Tensor gating_output, "
    "bool renormalize, Tensor? correction_bias"
)
_GATE_TAIL = (
    "int num_expert_group, int topk_group, int topk, int num_fused_shared_experts, "
    "{between}float routed_scaling_factor, bool apply_routed_scaling_factor_on_output) -> Tensor[]"
)
_SCORED_TAIL = _GATE_TAIL.format(between="int scoring_func, bool renormalize, ")

SCHEMAS = {
    "S1a": _SIGMOID + ") -> ()",
    "S1": _SIGMOID + ") -> ()",
    "S2": _SIGMOID + ", float routed_scaling_factor=1.0, int num_fused_shared_experts=0) -> ()",
    "F1": "moe_fused_gate(Tensor input, Tensor bias, " + _GATE_TAIL.format(between=""),
    "F2": "moe_fused_gate(Tensor input, Tensor bias, " + _SCORED_TAIL,
    "F3": "moe_fused_gate(Tensor input, Tensor? bias, " + _SCORED_TAIL,
    "B1": "biased_topk(Tensor input, Tensor bias, Tensor! output, Tensor! indices, int topk, "
    "int scoring_func, int num_fused_shared_experts, bool renormalize, "
    "float routed_scaling_factor, bool apply_routed_scaling_factor_on_output) -> ()",
    "topk_softmax": "topk_softmax(Tensor! topk_weights, Tensor! topk_indices, "
    "Tensor gating_output, bool renormalize) -> ()",
}


def _chosen() -> dict[str, str]:
    chosen = {family: names[0] for family, names in FAMILIES.items()}
    for name in filter(None, os.environ.get("SIM_XPU_VARIANT", "S2,F3,B1").split(",")):
        if name not in FAMILIES.get(name[0], ()):
            known = ", ".join(n for names in FAMILIES.values() for n in names)
            raise ValueError(f"SIM_XPU_VARIANT has {name!r}, expected some of {known}")
        chosen[name[0]] = name
    return chosen


def _mode() -> str:
    mode = os.environ.get("SIM_XPU_MODE", "strict")
    if mode not in MODES:
        raise ValueError(f"SIM_XPU_MODE is {mode!r}, expected one of {', '.join(MODES)}")
    return mode


CHOSEN = _chosen()
STRICT = _mode() == "strict"
SLACK = os.environ.get("SIM_XPU_SLACK") == "1"
