"""The gate's logits are float32-exact for 16-bit operands, and nothing of a weight is kept."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sglang_moe_ext.ci import register_cpu_ci, run_file
from sglang_moe_ext.ops.linear import CHUNK_BYTES, FEW_TOKENS, linear_float32

register_cpu_ci(est_time=5, suite="base-a-test-cpu")

# The first two are widened in chunks, the second with a last one that is shorter.
SHAPES = [(256, 7168), (250, 4097), (16, 128), (1, 64)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("tokens", [0, 1, FEW_TOKENS, FEW_TOKENS + 1])
@pytest.mark.parametrize(("experts", "hidden"), SHAPES)
def test_against_float64(experts: int, hidden: int, tokens: int, dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(tokens)
    weight = (torch.randn(experts, hidden, generator=random) / hidden**0.5).to(dtype)
    states = torch.randn(tokens, hidden, generator=random).to(dtype)
    logits = linear_float32(states, weight)
    assert logits.dtype == torch.float32
    assert logits.shape == (tokens, experts)
    exact = states.double() @ weight.double().T
    assert torch.allclose(logits.double(), exact, rtol=0, atol=1e-5)


def test_the_shapes_reach_both_ways() -> None:
    assert [4 * experts * hidden > CHUNK_BYTES for experts, hidden in SHAPES] == [1, 1, 0, 0]


@pytest.mark.parametrize("tokens", [1, 63])
def test_a_weight_that_is_rebound_to_a_view_is_followed(tokens: int) -> None:
    """Kimi-K3 merges the gate into a larger matrix and makes `weight.data` a view of it."""
    random = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.randn(256, 4096, generator=random).bfloat16(), False)
    states = torch.randn(tokens, 4096, generator=random).bfloat16()
    linear_float32(states, weight)
    merged = torch.randn(600, 4096, generator=random).bfloat16()
    weight.data = merged[100:356]
    assert torch.equal(linear_float32(states, weight), linear_float32(states, merged[100:356]))
    merged[100:356] *= 2
    exact = states.double() @ merged[100:356].double().T
    assert torch.allclose(linear_float32(states, weight).double(), exact, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("tokens", [1, 63])
def test_rows_apart(tokens: int) -> None:
    """Neither operand needs to be contiguous."""
    wide = torch.randn(300, 8192).bfloat16()
    states = torch.randn(tokens, 8192).bfloat16()[:, ::2]
    weight = wide[::2, :4096]
    exact = states.double() @ weight.double().T
    assert torch.allclose(linear_float32(states, weight).double(), exact, rtol=1e-4, atol=1e-3)


if __name__ == "__main__":
    run_file(__file__)
