"""Which operation the `xpu` backend takes and what it passes: sizes, flags, dtypes, strides."""

from __future__ import annotations

import itertools

import pytest
import torch
from backend import DTYPES, INSTALLATION, SERVED, check, random_inputs, route, spec_of
from shapes import SHAPES, Shape, expected_operation
from torch import Tensor

from sglang_moe_ext import limits
from sglang_moe_ext.ops import xpu_kernels, xpu_router
from sglang_moe_ext.ops.compare import find_mismatch
from sglang_moe_ext.ops.spec import RouterSpec


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.model)
def test_the_operation_that_serves_each_model(shape: Shape) -> None:
    spec = spec_of(shape.experts, shape.topk, shape.groups, shape.kept)
    operation = expected_operation(shape, INSTALLATION)
    refusal = xpu_router.supports(spec)
    if operation is None:
        assert refusal
        return
    assert refusal is None
    variant = {"t": "S", "m": "F", "b": "B"}[operation[0]]
    variant = next(name for name in INSTALLATION.split(",") if name.startswith(variant))
    detail = xpu_router.prepare(spec).detail
    assert detail.startswith(f"sgl_kernel.{operation} ({variant}): ")
    assert f"{shape.experts} experts, top-{shape.topk}" in detail


def test_a_refusal_names_every_operation_and_its_limit() -> None:
    why = xpu_router.supports(spec_of(896, 16))
    assert why is not None
    assert "topk_sigmoid takes at most 256 experts" in why
    assert "moe_fused_gate takes experts/groups 128/4, 128/8, 256/8, 256/16, 512/16" in why
    assert "biased_topk takes at most 512 experts" in why


def test_other_devices_and_a_bias_per_token_are_refused() -> None:
    assert xpu_router.supports(RouterSpec(128, 6)) == "serves tensors on xpu, found cpu"
    why = xpu_router.supports(spec_of(128, 6, per_token_bias=True))
    assert why == "no operation of sgl_kernel takes a bias per token"


@pytest.mark.parametrize("E", [1, 2, 3, 8, 60, 128, 255, 256, 257, 512, 513, 1024])
def test_every_number_of_experts_and_topk(E: int) -> None:
    logits, bias = random_inputs(E, tokens=5)
    for K in (1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 17):
        if K <= E:
            check(spec_of(E, K), logits, bias)


@pytest.mark.parametrize(
    ("E", "G"), [(512, 16), (256, 8), (256, 16), (128, 4), (128, 8), (64, 8), (512, 32), (96, 4)]
)
def test_every_pair_of_experts_and_groups(E: int, G: int) -> None:
    logits, bias = random_inputs(E, tokens=9)
    for TG in (1, 2, 3, G // 2, G):
        for K in (1, 4, 8):
            if K <= TG * E // G:
                spec = spec_of(E, K, G, TG)
                check(spec, logits, bias)
                if TG < G and (E, G) not in limits.COMPILED_PAIRS:
                    assert xpu_router.supports(spec) is not None


@pytest.mark.parametrize("shape", SERVED.values(), ids=SERVED)
@pytest.mark.parametrize("shared", [0, 1, 2])
def test_flags(shape: tuple[int, int, int, int], shared: int) -> None:
    E, K, G, TG = shape
    logits, bias = random_inputs(E)
    for renormalize, apply, factor in itertools.product((True, False), (True, False), (1.0, 2.5)):
        spec = spec_of(
            E,
            K + shared,
            G,
            TG,
            num_fused_shared_experts=shared,
            renormalize=renormalize,
            routed_scaling_factor=factor,
            apply_routed_scaling_factor_on_output=apply,
        )
        check(spec, logits, bias)


@pytest.mark.parametrize("shape", SERVED.values(), ids=SERVED)
@pytest.mark.parametrize("tokens", [1, 2, 63, 128, 1025])
def test_numbers_of_tokens(shape: tuple[int, int, int, int], tokens: int) -> None:
    check(spec_of(*shape), *random_inputs(shape[0], tokens))


@pytest.mark.parametrize("shape", SERVED.values(), ids=SERVED)
def test_dtypes(shape: tuple[int, int, int, int]) -> None:
    for logits_dtype, bias_dtype in itertools.product(DTYPES, DTYPES):
        logits, bias = random_inputs(shape[0])
        spec = spec_of(*shape, logits_dtype=logits_dtype, bias_dtype=bias_dtype)
        check(spec, logits.to(logits_dtype), bias.to(bias_dtype))


@pytest.mark.parametrize("shape", SERVED.values(), ids=SERVED)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strided_and_misaligned_inputs(
    shape: tuple[int, int, int, int], dtype: torch.dtype
) -> None:
    E = shape[0]
    logits, bias = random_inputs(E)
    wide = torch.zeros(33, E + 3, dtype=dtype, device="xpu")
    wide[:, 1 : E + 1] = logits.to(dtype)
    long_bias = torch.zeros(E + 1, device="xpu")
    long_bias[1:] = bias
    spec = spec_of(*shape, logits_dtype=dtype)
    answer = route(spec, wide[:, 1 : E + 1], long_bias[1:])
    if answer is not None:
        assert find_mismatch(*answer, logits.to(dtype), bias, spec) is None


def test_a_kernel_is_given_dense_rows_even_of_rows_that_overlap() -> None:
    given = []

    def select(x: Tensor, bias: Tensor) -> Tensor:
        given.append(x)
        return torch.zeros(100, 6, dtype=torch.int32)

    # On the CPU, because the simulated device makes copies of such views before it adds.
    logits = torch.zeros(227).as_strided((100, 128), (1, 1))
    xpu_router._route(logits, torch.zeros(128), select, -1e30, spec_of(128, 6))
    assert given[0].is_contiguous()


def test_rows_do_not_depend_on_the_batch() -> None:
    for shape in SERVED.values():
        logits, bias = random_inputs(shape[0])
        whole = route(spec_of(*shape), logits, bias)
        if whole is not None:
            single = route(spec_of(*shape), logits[7:8], bias)
            assert torch.equal(whole[0][7:8].cpu(), single[0].cpu())
            assert torch.equal(whole[1][7:8].cpu(), single[1].cpu())


@pytest.fixture
def fresh_probe():
    xpu_kernels.find.cache_clear()
    yield
    xpu_kernels.find.cache_clear()


@pytest.mark.usefixtures("fresh_probe")
def test_an_operation_with_unknown_arguments_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(xpu_kernels.VARIANTS, "moe_fused_gate", {})
    why = xpu_kernels.find("moe_fused_gate")
    missing = "F0" in INSTALLATION
    assert ("has no operation" if missing else "unknown arguments (input, bias, ") in str(why)


@pytest.mark.usefixtures("fresh_probe")
def test_a_wrapper_that_disagrees_with_its_operation_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import sgl_kernel

    monkeypatch.setattr(sgl_kernel, "moe_fused_gate", lambda input_tensor, bias: None)
    why = xpu_kernels.find("moe_fused_gate")
    missing = "F0" in INSTALLATION
    assert ("has no operation" if missing else "lacks apply_routed_scaling") in str(why)


@pytest.mark.usefixtures("fresh_probe")
def test_an_operation_without_a_python_function_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import sgl_kernel

    monkeypatch.delattr(sgl_kernel, "topk_sigmoid", raising=False)
    why = xpu_kernels.find("topk_sigmoid")
    missing = "S0" in INSTALLATION
    assert ("has no operation" if missing else "no Python function for it") in str(why)


@pytest.mark.usefixtures("fresh_probe")
def test_the_cuda_package_of_the_same_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has the same operations, for another dispatch key."""
    monkeypatch.setattr(torch._C, "_dispatch_has_kernel_for_dispatch_key", lambda *_: False)
    for operation in xpu_kernels.VARIANTS:
        assert isinstance(xpu_kernels.find(operation), str)
    assert "not for XPU" in xpu_kernels.find("moe_fused_gate") or "F0" in INSTALLATION
