"""What the cases for the `xpu` backend share: shapes, inputs and the check."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from sglang_moe_ext.ops import xpu_router
from sglang_moe_ext.ops.compare import find_mismatch
from sglang_moe_ext.ops.spec import RouterSpec

INSTALLATION = os.environ["SIM_XPU_VARIANT"]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# One served shape per operation, where the installation has it, and both ways in which
# topk_sigmoid marks experts as taken (128 is a power of two, 160 isn't).
SERVED = {
    "128/6": (128, 6, 1, 1),
    "160/8": (160, 8, 1, 1),
    "256/8 g8 tg4": (256, 8, 8, 4),
    "384/8": (384, 8, 1, 1),
}


def spec_of(E: int, K: int, G: int = 1, TG: int = 1, **changes: object) -> RouterSpec:
    return RouterSpec(E, K, G, TG, device_type="xpu", **changes)


def random_inputs(E: int, tokens: int = 33, offset: float = 0.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(E * 1000 + tokens)
    logits = 2 * torch.randn(tokens, E, generator=generator)
    return logits, offset + 0.3 * torch.randn(E, generator=generator)


def route(spec: RouterSpec, logits: Tensor, bias: Tensor) -> tuple[Tensor, Tensor] | None:
    """The backend's answer, or None if it refuses the specification."""
    if xpu_router.supports(spec) is not None:
        return None
    return xpu_router.prepare(spec).run(logits.to("xpu"), bias.to("xpu"))


def check(spec: RouterSpec, logits: Tensor, bias: Tensor) -> None:
    answer = route(spec, logits, bias)
    if answer is not None:
        assert find_mismatch(*answer, logits, bias, spec) is None
