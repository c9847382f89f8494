"""The operation as torch.compile sees it: one opaque node, so that no graph breaks at it.

Backends look themselves up in dictionaries, call compiled loops or launch kernels; Dynamo
need not follow them. The eager path does not come through here: a custom operator's own
dispatch would cost several times as much as ours.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sglang_moe_ext.ops import dispatch


@torch.library.custom_op("sglang_moe_ext::biased_grouped_topk", mutates_args=())
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


@_op.register_fake
def _(
    gating_output: Tensor, correction_bias: Tensor, topk: int, *_: object
) -> tuple[Tensor, Tensor]:
    rows = gating_output.shape[0]
    return (
        gating_output.new_empty((rows, topk), dtype=torch.float32),
        gating_output.new_empty((rows, topk), dtype=torch.int32),
    )
