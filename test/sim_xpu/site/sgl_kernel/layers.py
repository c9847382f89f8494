"""The layers around routing that SGLang calls on XPU, in plain PyTorch and float32 inside.

Only what a DeepSeek-style model on the `torch_native` attention backend needs. No checks:
these let a server run, they are no instrument.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import silu


def rmsnorm(input: Tensor, weight: Tensor, eps: float = 1e-6, out: Tensor | None = None) -> Tensor:
    x = input.float()
    normed = x * torch.rsqrt(x.pow(2).mean(dim=-1, keepdim=True) + eps)
    result = (normed * weight).to(input.dtype)
    return result if out is None else out.copy_(result)


def fused_add_rmsnorm(input: Tensor, residual: Tensor, weight: Tensor, eps: float = 1e-6) -> None:
    residual.add_(input)
    input.copy_(rmsnorm(residual, weight, eps))


def silu_and_mul(input: Tensor, out: Tensor | None = None) -> Tensor:
    gate, up = input.float().chunk(2, dim=-1)
    result = (silu(gate) * up).to(input.dtype)
    return result if out is None else out.copy_(result)


ROTARY_SCHEMA = (
    "rotary_embedding(Tensor positions, Tensor query, Tensor key, int head_size, "
    "Tensor cos_sin_cache, bool is_neox) -> (Tensor, Tensor)"
)


def rotary_embedding(
    positions: Tensor,
    query: Tensor,
    key: Tensor,
    head_size: int,
    cos_sin_cache: Tensor,
    is_neox: bool,
) -> tuple[Tensor, Tensor]:
    """query, key: [T, heads, head_size], all of it rotated."""
    cos, sin = cos_sin_cache[positions.flatten()].float()[:, None].chunk(2, dim=-1)

    def rotate(x: Tensor) -> Tensor:
        half = head_size // 2
        pairs = x.float().unflatten(-1, (2, half) if is_neox else (half, 2))
        a, b = pairs.unbind(-2 if is_neox else -1)
        rotated = torch.stack((a * cos - b * sin, b * cos + a * sin), -2 if is_neox else -1)
        return rotated.flatten(-2).to(x.dtype)

    return rotate(query), rotate(key)


def fused_experts(
    hidden_states: Tensor,
    w1: Tensor,
    w2: Tensor,
    topk_weights: Tensor,
    topk_ids: Tensor,
    b1: Tensor | None = None,
    b2: Tensor | None = None,
    activation: str = "silu",
    routed_scaling_factor: float | None = None,
    gemm1_alpha: float | None = None,
    gemm1_limit: float | None = None,
    swiglu_limit: float | None = None,
) -> Tensor:
    """w1: [E, 2I, H], w2: [E, H, I]."""
    unsupported = (b1, b2, gemm1_alpha, gemm1_limit, swiglu_limit)
    if activation != "silu" or any(value is not None for value in unsupported):
        raise NotImplementedError("simulated sgl_kernel.fused_experts does plain silu only")
    x, ids, weights = hidden_states.cpu(), topk_ids.cpu(), topk_weights.cpu()
    total = torch.zeros(x.shape, dtype=torch.float32)
    for expert in ids.unique().tolist():
        row, slot = (ids == expert).nonzero(as_tuple=True)
        hidden = silu_and_mul(x[row] @ w1[expert].cpu().T) @ w2[expert].cpu().T
        total.index_add_(0, row, hidden.float() * weights[row, slot, None])
    if routed_scaling_factor is not None:
        total *= routed_scaling_factor
    return total.to(hidden_states.dtype).to(hidden_states.device)
