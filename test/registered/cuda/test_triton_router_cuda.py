"""The compiled Triton router on a CUDA device: the full grid, graphs, and row independence."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sglang_moe_ext.ci import register_cuda_ci, run_file
from sglang_moe_ext.ops import triton_router
from sglang_moe_ext.ops.compare import find_mismatch
from sglang_moe_ext.ops.selfcheck import find_failure
from sglang_moe_ext.ops.spec import LOGITS_DTYPES, RouterSpec

register_cuda_ci(est_time=200, suite="base-b-test-1-gpu-large")

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

SHAPES = {  # experts, top-k with shared slots, groups, groups kept, shared slots
    "256/8 g8 tg4": (256, 8, 8, 4, 0),
    "256/8+1 g8 tg4": (256, 9, 8, 4, 1),
    "384/8": (384, 8, 1, 1, 0),
    "128/6": (128, 6, 1, 1, 0),
    "256/8": (256, 8, 1, 1, 0),
    "512/22": (512, 22, 1, 1, 0),
    "896/16": (896, 16, 1, 1, 0),
    "160/8": (160, 8, 1, 1, 0),
    "160/6 g8 tg3": (160, 6, 8, 3, 0),
    "72/4+2 g9 tg4": (72, 6, 9, 4, 2),
    "8/4 g8 tg4, one expert to a group": (8, 4, 8, 4, 0),
    "61/5, odd": (61, 5, 1, 1, 0),
    "1024/32": (1024, 32, 1, 1, 0),
    "1/1": (1, 1, 1, 1, 0),
}
TOKENS = (1, 7, 300)
MANY = triton_router.LAUNCH["cuda"].many + 1  # several rows to a program, the last one partial


def make_spec(shape: str, **options: object) -> RouterSpec:
    experts, topk, groups, kept, shared = SHAPES[shape]
    return RouterSpec(experts, topk, groups, kept, shared, device_type="cuda", **options)


def draw(tokens: int, spec: RouterSpec, spread: float = 3.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator("cuda").manual_seed(tokens * 1000 + spec.num_experts)
    size = (tokens, spec.num_experts)
    logits = torch.randn(size, generator=generator, device="cuda") * spread
    bias_size = size if spec.per_token_bias else size[1:]
    bias = torch.randn(bias_size, generator=generator, device="cuda") / 10
    return logits.to(spec.logits_dtype), bias.to(spec.bias_dtype)


def route(logits: Tensor, bias: Tensor, spec: RouterSpec) -> tuple[Tensor, Tensor]:
    """One call whose outputs very likely lie in memory that was poisoned just before."""
    assert triton_router.supports(spec) is None
    run = triton_router.prepare(spec).run
    torch.full((len(logits), spec.topk), torch.nan, device="cuda")
    torch.full((len(logits), spec.topk), -777, dtype=torch.int32, device="cuda")
    return run(logits, bias)


@pytest.mark.parametrize("dtype", LOGITS_DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_grid(shape: str, dtype: torch.dtype) -> None:
    for renormalize in (True, False):
        for applied in (True, False):
            spec = make_spec(
                shape,
                renormalize=renormalize,
                routed_scaling_factor=2.5,
                apply_routed_scaling_factor_on_output=applied,
                logits_dtype=dtype,
            )
            for tokens in TOKENS:
                logits, bias = draw(tokens, spec)
                assert find_mismatch(*route(logits, bias, spec), logits, bias, spec) is None


@pytest.mark.parametrize("shape", SHAPES)
def test_many_tokens(shape: str) -> None:
    spec = make_spec(shape)
    logits, bias = draw(MANY, spec)
    assert find_mismatch(*route(logits, bias, spec), logits, bias, spec) is None


@pytest.mark.parametrize("bias_dtype", LOGITS_DTYPES, ids=str)
@pytest.mark.parametrize("shape", ["256/8 g8 tg4", "61/5, odd"])
def test_bias_per_token(shape: str, bias_dtype: torch.dtype) -> None:
    spec = make_spec(shape, per_token_bias=True, bias_dtype=bias_dtype)
    logits, bias = draw(33, spec)
    assert find_mismatch(*route(logits, bias, spec), logits, bias, spec) is None


@pytest.mark.parametrize("shape", SHAPES)
def test_built_batches_of_the_self_check(shape: str) -> None:
    spec = make_spec(shape)
    run = triton_router.prepare(spec).run
    assert find_failure(run, spec, torch.device("cuda")) is None


@pytest.mark.parametrize("spread", [0.0, 8.0, 30.0], ids="spread {}".format)
@pytest.mark.parametrize("shape", ["256/8 g8 tg4", "512/22"])
def test_ties(shape: str, spread: float) -> None:
    """Logits of few different values without a bias; sigmoids that saturate at 1."""
    spec = make_spec(shape, logits_dtype=torch.bfloat16)
    logits, bias = draw(64, spec, spread)
    bias.zero_()
    assert find_mismatch(*route(logits, bias, spec), logits, bias, spec) is None


def test_lower_id_first_among_equal_winners() -> None:
    spec = make_spec("128/6")
    logits, bias = torch.arange(128.0, device="cuda")[None] / -16, torch.zeros(128, device="cuda")
    logits[0, [41, 42]] = 2.0  # side by side: one lane holds both
    logits[0, [9, 100]] = 1.0
    assert route(logits, bias, spec)[1].tolist() == [[41, 42, 9, 100, 0, 1]]


@pytest.mark.parametrize("shape", ["512/22", "896/16", "256/8 g8 tg4"])
def test_most_winners_in_one_lane(shape: str) -> None:
    """Experts 4l..4l+3 of every chunk of 128 share lane l, which lists only four of them."""
    spec = make_spec(shape)
    logits, bias = draw(96, spec, spread=1.0)
    lane = torch.arange(spec.num_experts, device="cuda") // 4 % 32
    logits += (lane[None] == torch.arange(96, device="cuda")[:, None] % 32) * 3.0
    assert find_mismatch(*route(logits, bias, spec), logits, bias, spec) is None


@pytest.mark.parametrize("shape", ["128/6", "256/8 g8 tg4"])
def test_nan_infinite_banned_and_forced(shape: str) -> None:
    spec = make_spec(shape)
    logits, bias = draw(8, spec)
    clean = route(logits[5:], bias, spec)
    logits[0] = torch.nan
    logits[1, 3:] = torch.nan
    logits[2, ::2] = torch.nan
    logits[3] = torch.inf
    logits[4] = -torch.inf
    weights, ids = route(logits, bias, spec)
    assert torch.equal(weights[5:], clean[0])
    assert torch.equal(ids[5:], clean[1])
    assert find_mismatch(weights, ids, logits, bias, spec) is None
    bias[: spec.num_experts - 2] = -torch.inf
    bias[7] = torch.inf
    assert find_mismatch(*route(logits, bias, spec), logits, bias, spec) is None


def test_sigmoid_is_accurate_down_to_the_smallest_normal() -> None:
    spec = make_spec("1/1", renormalize=False)
    logits = torch.linspace(-87, 30, 100_001, device="cuda")[:, None]
    weights, _ = route(logits, torch.zeros(1, device="cuda"), spec)
    exact = logits.double().sigmoid()
    assert ((weights - exact).abs() / exact).max() <= 1e-6


@pytest.mark.parametrize("level", [0.0, -50.0, -90.0, -200.0, -3.3895e38])
def test_equal_logits_weigh_the_same_at_every_level(level: float) -> None:
    spec = make_spec("128/6")
    logits = torch.full((2, 128), level, device="cuda")
    weights, _ = route(logits, torch.arange(128.0, device="cuda") / 100, spec)
    torch.testing.assert_close(weights, torch.full_like(weights, 1 / 6), rtol=1e-6, atol=0)


@pytest.mark.parametrize("offset", [0, 1, 4], ids="column {}".format)
@pytest.mark.parametrize("width", [264, 267])
def test_rows_of_a_wider_tensor(width: int, offset: int) -> None:
    spec = make_spec("256/8")
    _, bias = draw(1, spec)
    wide = torch.randn(33, width, device="cuda")
    logits = wide[:, offset : offset + 256]
    assert find_mismatch(*route(logits, bias, spec), logits, bias, spec) is None


def test_misaligned_bias() -> None:
    spec = make_spec("256/8")
    logits, _ = draw(33, spec)
    bias = torch.randn(300, device="cuda")[3 : 3 + 256]
    assert find_mismatch(*route(logits, bias, spec), logits, bias, spec) is None


def test_offsets_beyond_32_bits() -> None:
    spec = make_spec("128/6", logits_dtype=torch.bfloat16)
    rows, row_stride = 2_200, 2**20
    if torch.cuda.mem_get_info()[0] < 2 * rows * row_stride + 2**30:
        pytest.skip(f"needs {2 * rows * row_stride / 2**30:.1f} GiB of free device memory")
    logits = torch.zeros(rows, row_stride, dtype=torch.bfloat16, device="cuda")[:, :128]
    logits.copy_(draw(rows, spec)[0])
    _, bias = draw(1, spec)
    assert find_mismatch(*route(logits, bias, spec), logits, bias, spec) is None


@pytest.mark.parametrize("shape", ["256/8 g8 tg4", "384/8", "512/22", "61/5, odd"])
def test_a_row_does_not_depend_on_its_batch(shape: str) -> None:
    """Bit for bit, whatever the batch's size, also where the launch changes with it."""
    spec = make_spec(shape)
    logits, bias = draw(MANY, spec)
    weights, ids = route(logits, bias, spec)
    for start, end in [(0, 1), (MANY - 1, MANY), (5, 12), (100, 228), (1, MANY - 1)]:
        part = route(logits[start:end], bias, spec)
        assert torch.equal(part[0], weights[start:end])
        assert torch.equal(part[1], ids[start:end])
    again = route(logits, bias, spec)
    assert torch.equal(again[0], weights)
    assert torch.equal(again[1], ids)


@pytest.mark.parametrize("tokens", [1, 64, MANY])
@pytest.mark.parametrize("shape", ["256/8 g8 tg4", "896/16"])
def test_graph_replay_with_changed_inputs(shape: str, tokens: int) -> None:
    """The bias is written just before the call, in the graph: an early start must wait for it."""
    spec = make_spec(shape)
    run = triton_router.prepare(spec).run
    logits, source = draw(tokens, spec)
    bias = torch.empty_like(source)
    run(logits, source)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        bias.copy_(source)
        weights, ids = run(logits, bias)
    for step in range(20):
        fresh, fresh_bias = draw(tokens + step, spec)
        logits.copy_(fresh[step:])
        source.copy_(fresh_bias)
        weights.fill_(torch.nan)
        ids.fill_(-777)
        graph.replay()
        eager = run(logits, source)
        assert torch.equal(weights, eager[0])
        assert torch.equal(ids, eager[1])
    assert find_mismatch(weights, ids, logits, source, spec) is None


if __name__ == "__main__":
    run_file(__file__)
