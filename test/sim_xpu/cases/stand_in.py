"""What the cases for the stand-in `sgl_kernel` share: inputs and calls."""

from __future__ import annotations

import os
from collections.abc import Callable

import sgl_kernel
import torch
from torch import Tensor

HAS = os.environ["SIM_XPU_VARIANT"].split(",")
STRICT = os.environ["SIM_XPU_MODE"] == "strict"
Case = Callable[..., None]


def on_device(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, device="xpu")


def outputs(tokens: int, k: int) -> tuple[Tensor, Tensor]:
    return (
        torch.empty(tokens, k, device="xpu"),
        torch.empty(tokens, k, dtype=torch.int32, device="xpu"),
    )


def random_inputs(tokens: int, E: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(E)
    logits = torch.randn(tokens, E, generator=generator)
    return logits.to("xpu"), 0.1 * torch.randn(E, generator=generator).to("xpu")


def topk_sigmoid(x: Tensor, k: int, renormalize: bool, bias: Tensor | None, **more: object):
    weights, ids = outputs(x.shape[0], k)
    sgl_kernel.topk_sigmoid(weights, ids, x, renormalize, bias, **more)
    return weights.cpu(), ids.cpu()


def biased_topk(x: Tensor, k: int, bias: Tensor, scoring: str = "sigmoid", **more: object):
    weights, ids = outputs(x.shape[0], k)
    sgl_kernel.biased_topk(x, bias, weights, ids, k, scoring, **more)
    return weights.cpu(), ids.cpu()


def only(*variants: str) -> Callable[[Case], Case | None]:
    """Take a case out of the file where the installation lacks what it is about."""
    return lambda case: case if set(variants) & set(HAS) else None


def fused_gate(x: Tensor, bias: Tensor, G: int, TG: int, k: int, **more: object):
    weights, ids = sgl_kernel.moe_fused_gate(x, bias, G, TG, k, **more)
    return weights.cpu(), ids.cpu()
