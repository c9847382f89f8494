"""The formula of the DeepSeek-V3 report in plain torch, the way models spell it out."""

from __future__ import annotations

import torch
from torch import Tensor

from sglang_moe_ext.ops.spec import RouterSpec


def plain_torch(logits: Tensor, bias: Tensor, spec: RouterSpec) -> tuple[Tensor, Tensor]:
    score = logits.float().sigmoid()
    key = score + bias.float()
    if spec.num_expert_group > 1:
        grouped = key.view(key.shape[0], spec.num_expert_group, -1)
        best = min(2, spec.experts_per_group)
        kept = grouped.topk(best, dim=-1).values.sum(-1).topk(spec.topk_group, dim=-1).indices
        mask = torch.zeros(grouped.shape[:2], dtype=torch.bool, device=key.device)
        key = grouped.masked_fill(~mask.scatter_(1, kept, True)[..., None], -torch.inf).flatten(1)
    ids = key.topk(spec.topk, dim=-1).indices
    weights = score.gather(1, ids)
    if spec.renormalize:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return weights * spec.output_scale, ids.int()
