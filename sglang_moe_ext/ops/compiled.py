"""The operation as torch.compile sees it: one opaque node, so that no graph breaks at it.

Backends look themselves up in dictionaries, call compiled loops or launch kernels; Dynamo
need not follow them. The eager path does not come through here: a custom operator's own
dispatch would cost several times as much as ours.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sglang_moe_ext.ops import dispatch


def _op(
    gating_output: Tensor,
    correction_bias: Tensor,
    topk: int,
    renormalize: bool,
    num_expert_group: int | None,
    topk_group: int | None,
    num_fused_shared_experts: int,
    routed_scaling_factor: float | None,
    apply_routed_scaling_factor_on_output: bool,
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    return dispatch.biased_grouped_topk(
        gating_output,
        correction_bias,
        topk,
        renormalize,
        num_expert_group,
        topk_group,
        num_fused_shared_experts,
        routed_scaling_factor,
        apply_routed_scaling_factor_on_output,
        backend=backend,
    )


def _shapes(
    gating_output: Tensor, correction_bias: Tensor, topk: int, *_: object
) -> tuple[Tensor, Tensor]:
    rows = gating_output.shape[0]
    return (
        gating_output.new_empty((rows, topk), dtype=torch.float32),
        gating_output.new_empty((rows, topk), dtype=torch.int32),
    )


# Not torch.library.custom_op: it looks for its caller's source through every loaded module.
_library = torch.library.Library("sglang_moe_ext", "DEF")  # type: ignore[no-untyped-call]
_library.define(  # type: ignore[no-untyped-call]
    "biased_grouped_topk(Tensor gating_output, Tensor correction_bias, int topk, bool renormalize, "
    "int? num_expert_group, int? topk_group, int num_fused_shared_experts, "
    "float? routed_scaling_factor, bool apply_routed_scaling_factor_on_output, str? backend) "
    "-> (Tensor, Tensor)"
)
_library.impl("biased_grouped_topk", _op, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
_library.impl("biased_grouped_topk", _shapes, "Meta")  # type: ignore[no-untyped-call]
