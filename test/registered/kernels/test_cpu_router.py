"""The `cpu` backend against the reference: shapes, dtypes, flags, built cases, rows, threads."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sglang_moe_ext.ci import register_cpu_ci, run_file
from sglang_moe_ext.ops import RouterSpec
from sglang_moe_ext.ops.compare import find_mismatch
from sglang_moe_ext.ops.reference import reference_topk

pytest.importorskip("numba", reason="the cpu backend is compiled with numba")
from sglang_moe_ext.ops import cpu_kernels, cpu_router

register_cpu_ci(est_time=24, suite="base-a-test-cpu")

SHAPES = {
    "DeepSeek-V3 256/8 g8 tg4": (256, 8, 8, 4),
    "Kimi-K2 384/8": (384, 8),
    "Nemotron-3-Nano 128/6": (128, 6),
    "GLM-5 256/8": (256, 8),
    "Nemotron-3-Super 512/22": (512, 22),
    "Kimi-K3 896/16": (896, 16),
    "160/8": (160, 8),
    "160/6 g8 tg3, groups of 20": (160, 6, 8, 3),
    "72/6 g9 tg5, groups of 8": (72, 6, 9, 5),
    "60/4": (60, 4),
    "7/7 g7 tg7, groups of one": (7, 7, 7, 7),
    "8/4 g8 tg4, groups of one": (8, 4, 8, 4),
    "64/6 g32 tg4, groups of two": (64, 6, 32, 4),
    "7/3": (7, 3),
    "1/1": (1, 1),
    "64/40, more than two vectors": (64, 40),
}
TOKENS = (1, 2, 7, 63, 129, 1025)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

by_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
by_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())


@pytest.fixture(autouse=True)
def poisoned_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill what the backend allocates, so that an unwritten element shows."""
    allocate = torch.empty_strided

    def poisoned(*args: object, **options: object) -> Tensor:
        tensor = allocate(*args, **options)
        return tensor.fill_(math.nan if tensor.is_floating_point() else -777)

    monkeypatch.setattr(torch, "empty_strided", poisoned)


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def normal(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def route(logits: Tensor, bias: Tensor, *shape: int, **flags: object) -> tuple[Tensor, Tensor]:
    return cpu_router.prepare(spec_of(logits, bias, *shape, **flags)).run(logits, bias)


def spec_of(logits: Tensor, bias: Tensor, *shape: int, **flags: object) -> RouterSpec:
    return RouterSpec(
        *shape,
        logits_dtype=logits.dtype,
        bias_dtype=bias.dtype,
        per_token_bias=bias.dim() == 2,
        **flags,
    )


def assert_agrees(logits: Tensor, bias: Tensor, *shape: int, **flags: object) -> None:
    """Right up to what float32 rounding may decide."""
    weights, ids = route(logits, bias, *shape, **flags)
    mismatch = find_mismatch(weights, ids, logits, bias, spec_of(logits, bias, *shape, **flags))
    assert mismatch is None, mismatch


def assert_exact(logits: Tensor, bias: Tensor, *shape: int, **flags: object) -> None:
    """The same ids as the reference, for inputs whose keys are exact or far apart."""
    weights, ids = route(logits, bias, *shape, **flags)
    want_weights, want = reference_topk(logits, bias, spec_of(logits, bias, *shape, **flags))
    assert ids.tolist() == want.tolist()
    torch.testing.assert_close(weights, want_weights, rtol=1e-5, atol=1e-37)


# Agreement with the reference


@by_dtype
@by_shape
def test_random_logits(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    for T in TOKENS:
        logits = (3 * normal(T, shape[0], seed=T)).to(dtype)
        assert_agrees(logits, 0.3 * normal(shape[0], seed=1), *shape)


@pytest.mark.parametrize("shared", [0, 1, 3])
@pytest.mark.parametrize("apply", [False, True], ids=["scaled later", "scaled here"])
@pytest.mark.parametrize("renormalize", [False, True], ids=["raw", "renormalised"])
@pytest.mark.parametrize("shape", [(256, 8, 8, 4), (384, 20), (60, 6, 4, 2)], ids=str)
def test_flags(shape: tuple[int, ...], renormalize: bool, apply: bool, shared: int) -> None:
    assert_agrees(
        2 * normal(37, shape[0]) - 1,
        0.2 * normal(shape[0], seed=1),
        *shape,
        num_fused_shared_experts=shared,
        renormalize=renormalize,
        routed_scaling_factor=2.5,
        apply_routed_scaling_factor_on_output=apply,
    )


@by_dtype
@pytest.mark.parametrize("bias_dtype", DTYPES.values(), ids=[f"bias {d}" for d in DTYPES])
@pytest.mark.parametrize("per_token", [False, True], ids=["[E]", "[T, E]"])
@pytest.mark.parametrize("shape", [(256, 8, 8, 4), (60, 4)], ids=str)
def test_bias(
    shape: tuple[int, ...], per_token: bool, bias_dtype: torch.dtype, dtype: torch.dtype
) -> None:
    E = shape[0]
    bias = (7 + 0.3 * normal(*((19, E) if per_token else (E,)), seed=1)).to(bias_dtype)
    assert_agrees(normal(19, E).to(dtype), bias, *shape)


@by_dtype
@pytest.mark.parametrize("shape", [(60, 4), (256, 8, 8, 4)], ids=str)
def test_a_column_slice_of_a_wider_tensor(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    E = shape[0]
    wide = normal(41, 2 * E + 5).to(dtype)
    bias = 0.1 * normal(E, seed=1)
    logits = wide[1::2, 3 : 3 + E]
    assert logits.stride(0) != E
    assert_agrees(logits, bias, *shape)
    for found, want in zip(
        route(logits, bias, *shape), route(logits.contiguous(), bias, *shape), strict=True
    ):
        assert torch.equal(found, want)


def test_a_row_stride_beyond_32_bits(tmp_path: Path) -> None:
    """Rows 8 GiB apart, in a file of holes."""
    stride = 2**31 + 64
    storage = torch.UntypedStorage.from_file(
        str(tmp_path / "holes"), shared=True, nbytes=4 * (2 * stride + 256)
    )
    logits = torch.tensor([]).set_(storage, 0, (3, 256), (stride, 1))
    logits[2] = normal(256)
    assert_agrees(logits, 0.1 * normal(256, seed=1), 256, 8, 8, 4)


# Ties


@by_shape
def test_everything_tied(shape: tuple[int, ...]) -> None:
    assert_exact(torch.zeros(18, shape[0]), torch.zeros(shape[0]), *shape)


@pytest.mark.parametrize("levels", [2, 3, 5, 17])
@by_shape
def test_ties_among_few_levels(shape: tuple[int, ...], levels: int) -> None:
    """Logits 0 score exactly 1/2, so dyadic biases make exact keys."""
    steps = torch.randint(levels, (40, shape[0]), generator=torch.Generator().manual_seed(levels))
    assert_exact(torch.zeros(40, shape[0]), (steps - 2) / 32, *shape)


@by_dtype
def test_saturated_scores_tie(dtype: torch.dtype) -> None:
    logits = torch.full((5, 256), -3.0)
    logits[:, 1::3] = torch.tensor([40.0, 88.0, 100.0, 1000.0, 60000.0])[:, None]
    assert_exact(logits.to(dtype), torch.zeros(256), 256, 8, 8, 4)


@pytest.mark.parametrize(
    ("groups", "want"),
    [
        ([1, 1, 0, 0, 1.25, 0.5, 0, 0], [0, 1]),
        ([1, 1, 1, 1, 0.25, 0.125, 0, 0], [0, 1]),
        ([-1, -1, -1, -1, -0.625, -0.625, -2, -2], [4, 5]),
        ([0.375, -0.375, -0.5, -0.5, 0.25, 0.125, -0.5, -0.5], [4, 5]),
        ([0.5, 0.25, 0, 0, 0.25, 0.5, 0, 0], [0, 1]),
    ],
    ids=["tied at the top", "group of equals", "all negative", "sum not maximum", "groups tied"],
)
def test_group_choice(groups: list[float], want: list[int]) -> None:
    _, ids = route(torch.zeros(1, 8), torch.tensor(groups), 8, 2, 2, 1)
    assert ids.tolist() == [want]


# NaN, infinities, underflow


@by_dtype
@by_shape
def test_nan_ranks_last_and_weighs_nothing(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    E = shape[0]
    logits = torch.zeros(6, E)
    logits[0] = math.nan
    logits[1, ::2] = math.nan
    logits[2, : E // 2] = math.nan
    logits[3, -1] = math.nan
    logits[4, 1:] = math.nan
    assert_exact(logits.to(dtype), (torch.arange(E) % 8) / 16, *shape)


@by_shape
def test_banned_and_forced_experts(shape: tuple[int, ...]) -> None:
    E = shape[0]
    bias = ((torch.arange(E) % 8) / 16).expand(5, E).clone()
    bias[0, ::2] = -math.inf
    bias[1] = -math.inf
    bias[2, E // 2] = math.inf
    bias[3] = -math.inf
    bias[3, -1] = math.inf
    bias[4, ::3] = math.inf
    bias[4, 1::3] = -math.inf
    logits = torch.zeros(5, E)
    assert_exact(logits, bias, *shape)
    logits[:, 0] = math.nan
    assert_exact(logits, bias, *shape)


@by_dtype
@by_shape
def test_infinite_logits(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    logits = torch.zeros(3, shape[0])
    logits[0] = -math.inf
    logits[1] = math.inf
    logits[2, ::2], logits[2, 1::2] = -math.inf, math.inf
    assert_exact(logits.to(dtype), (torch.arange(shape[0]) % 4) / 8, *shape)


@pytest.mark.parametrize("level", [-50.0, -87.0, -95.0, -103.0, -200.0, -3e38])
@by_shape
def test_underflow(shape: tuple[int, ...], level: float) -> None:
    spread = torch.arange(shape[0]).remainder(16) / 8
    bias = torch.arange(shape[0]).remainder(8) / 8
    assert_agrees((level + spread).expand(3, -1).contiguous(), bias, *shape)
    assert_agrees((level + spread).expand(3, -1).contiguous(), torch.zeros(shape[0]), *shape)


def test_weights_are_not_key_minus_bias() -> None:
    logits = torch.tensor([[-18.0, -17.0, 0.0, 0.0]])
    weights, ids = route(logits, torch.tensor([12.0, 12.0, 0.0, 0.0]), 4, 2)
    assert ids.tolist() == [[0, 1]]
    torch.testing.assert_close(weights, torch.tensor([[0.26894143, 0.73105854]]))


@pytest.mark.parametrize("sign", [-1, 1], ids=["small", "near one"])
def test_scores_within_one_part_in_a_million(sign: int) -> None:
    """Every expert selected and nothing renormalised: the weights are the scores."""
    logits = sign * torch.linspace(0, 87.3, 1024 * 64).view(-1, 64)
    weights, ids = route(logits, torch.zeros(64), 64, 64, renormalize=False)
    want = logits.double().sigmoid().gather(1, ids.long())
    assert ((weights.double() - want).abs() <= 1e-6 * want).all()


def test_a_score_of_exactly_one_half() -> None:
    weights, _ = route(torch.tensor([[0.0, -0.0]]), torch.zeros(2), 2, 2, renormalize=False)
    assert weights.tolist() == [[0.5, 0.5]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_every_16_bit_logit(dtype: torch.dtype) -> None:
    """All bit patterns, denormals, infinities and NaN included, against their upcast."""
    bits = torch.arange(-(2**15), 2**15).to(torch.int16).view(-1, 64)
    logits, bias = bits.view(dtype), torch.zeros(64)
    for found, want in zip(
        route(logits, bias, 64, 64, renormalize=False),
        route(logits.float(), bias, 64, 64, renormalize=False),
        strict=True,
    ):
        assert torch.equal(found, want)


# Rows and threads


@by_dtype
@by_shape
def test_a_row_does_not_depend_on_its_batch(
    shape: tuple[int, ...], dtype: torch.dtype, two_threads: None
) -> None:
    logits = (3 * normal(600, shape[0])).to(dtype)
    bias = 0.3 * normal(shape[0], seed=1)
    weights, ids = route(logits, bias, *shape)
    order = torch.randperm(600, generator=torch.Generator().manual_seed(2))
    torch.set_num_threads(1)
    moved_weights, moved_ids = route(logits[order], bias, *shape)
    assert torch.equal(moved_weights, weights[order])
    assert torch.equal(moved_ids, ids[order])
    for row in (0, 15, 16, 599):
        alone_weights, alone_ids = route(logits[row : row + 1], bias, *shape)
        assert torch.equal(alone_weights[0], weights[row])
        assert torch.equal(alone_ids[0], ids[row])


def test_calls_from_several_threads_at_once(two_threads: None) -> None:
    batches = [normal(1025, 256, seed=seed) for seed in range(8)]
    bias = 0.1 * normal(256, seed=99)
    run = cpu_router.prepare(spec_of(batches[0], bias, 256, 8, 8, 4)).run
    alone = [run(logits, bias) for logits in batches]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda logits: run(logits, bias), 4 * batches))
    for (weights, ids), (want_weights, want_ids) in zip(together, 4 * alone, strict=True):
        assert torch.equal(weights, want_weights)
        assert torch.equal(ids, want_ids)


def test_a_child_forked_by_a_process_that_has_routed_on_two_threads(two_threads: None) -> None:
    """As for torch's own operators: safe in the child once it runs on one thread."""
    logits, bias = normal(1025, 256), torch.zeros(256)
    want = route(logits, bias, 256, 8)[1]
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        os._exit(0 if torch.equal(route(logits, bias, 256, 8)[1], want) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# The contract of a backend


def test_refuses_other_devices() -> None:
    assert cpu_router.supports(RouterSpec(256, 8)) is None
    assert cpu_router.supports(RouterSpec(256, 8, device_type="xpu")) == (
        "tensors are on xpu, expected cpu"
    )


def test_a_torch_without_openmp_leaves_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.__config__, "parallel_info", lambda: "ATen parallel backend: native")
    assert cpu_router._team_of_torch.__wrapped__() is None


def test_what_numba_caches_belongs_to_all_of_its_sources(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """numba itself looks at one of the files only."""
    before = cpu_kernels._digest()
    for module in (cpu_kernels.cpu_scores, cpu_kernels.cpu_select, cpu_kernels.cpu_simd):
        edited = tmp_path / "edited.py"
        edited.write_bytes(Path(module.__file__).read_bytes() + b"\n")
        with monkeypatch.context() as patch:
            patch.setattr(module, "__file__", str(edited))
            assert cpu_kernels._digest() != before, module.__name__


def test_importing_it_without_numba_is_an_import_error() -> None:
    code = """
import sys
sys.modules["numba"] = None
try:
    import sglang_moe_ext.ops.cpu_router
except ImportError as error:
    sys.exit(0 if "numba" in str(error) else 2)
sys.exit(1)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


COLD = """
import torch
from sglang_moe_ext.ops import RouterSpec, cpu_router
weights, ids = cpu_router.prepare(RouterSpec(8, 2)).run(torch.zeros(1, 8), torch.zeros(8))
assert ids.tolist() == [[0, 1]] and weights.tolist() == [[0.5, 0.5]]
"""


def test_two_first_calls_at_once_and_one_with_no_place_for_a_cache(tmp_path: Path) -> None:
    shared = {"NUMBA_CACHE_DIR": str(tmp_path)}
    nowhere = {
        "NUMBA_CACHE_DIR": os.devnull,
        "NUMBA_CACHE_LOCATOR_CLASSES": "UserProvidedCacheLocator",
    }
    processes = [
        subprocess.Popen([sys.executable, "-c", COLD], env={**os.environ, **where})
        for where in (shared, shared, nowhere)
    ]
    assert [process.wait() for process in processes] == [0, 0, 0]
    compiled = [path.suffix for path in tmp_path.rglob("*")]
    assert compiled.count(".nbc") == 1


if __name__ == "__main__":
    run_file(__file__)
