"""`topk_softmax` as specified: ungrouped, no bias, no float32 logits."""

from __future__ import annotations

import torch
from torch import Tensor

from . import memory
from .memory import check


def kernel(
    topk_weights: Tensor, topk_indices: Tensor, gating_output: Tensor, renormalize: bool
) -> None:
    check(gating_output.dim() == 2, "gating_output must be 2D tensor")
    N, E = gating_output.shape
    check(E <= 256, f"n_experts only support up to 256, but got {E}")
    check(topk_weights.dtype == torch.float32, "topk_weights should be Float")
    check(topk_indices.dtype == torch.int32, "topk_indices should be Int")
    check(topk_weights.dim() == 2, "topk_weights must be 2D tensor")
    check(topk_indices.dim() == 2, "topk_indices must be 2D tensor")
    check(topk_weights.size(0) == N, "topk_weights.size(0) must equal n_tokens")
    check(topk_indices.size(0) == N, "topk_indices.size(0) must equal n_tokens")
    k = topk_weights.size(1)
    check(topk_indices.size(1) == k, "topk_indices.size(1) must equal topk_weights.size(1)")
    check(0 < k <= min(E, 8), "n_topk must satisfy 0 < n_topk <= min(n_experts, 8)")
    check(
        gating_output.dtype in (torch.float16, torch.bfloat16),
        f"\"fused_topk_softmax_kernel\" not implemented for '{gating_output.dtype}'",
        NotImplementedError,
    )

    x = memory.read("gating_output", gating_output)
    memory.check_values(x, None)
    weights_out = memory.output("topk_weights", topk_weights, (N, k))
    ids_out = memory.output("topk_indices", topk_indices, (N, k))

    score = x.float().softmax(dim=1)
    if E & (E - 1):
        score = score.to(x.dtype).float()  # the general path ranks and weighs in this dtype
    sorted_score, ids = score.sort(dim=1, descending=True, stable=True)
    weights = sorted_score[:, :k]
    if renormalize:
        weights = weights / memory.ordered_sum(weights)
    weights_out.copy_(weights)
    ids_out.copy_(ids[:, :k].int())


def topk_softmax(
    topk_weights: Tensor, topk_ids: Tensor, gating_output: Tensor, renormalize: bool = False
) -> None:
    torch.ops.sgl_kernel.topk_softmax.default(topk_weights, topk_ids, gating_output, renormalize)
