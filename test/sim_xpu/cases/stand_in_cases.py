"""What the stand-in `sgl_kernel` has, its `biased_topk` and its `topk_softmax`.

Expected values are written out from the specification, not taken from the stand-in's code.
"""

from __future__ import annotations

import pytest
import sgl_kernel
import torch
from stand_in import (
    HAS,
    STRICT,
    biased_topk,
    on_device,
    only,
    outputs,
    random_inputs,
)

from sglang_moe_ext.ops.compare import find_mismatch
from sglang_moe_ext.ops.spec import RouterSpec

ARGUMENTS = {"S1a": 5, "S1": 5, "S2": 7, "F1": 8, "F2": 10, "F3": 10, "B1": 10}
OPERATIONS = {"S": "topk_sigmoid", "F": "moe_fused_gate", "B": "biased_topk"}


def test_schemas_are_those_of_the_variant() -> None:
    for variant in HAS:
        operation = getattr(torch.ops.sgl_kernel, OPERATIONS[variant[0]], None)
        if variant not in ARGUMENTS:
            assert operation is None
            continue
        arguments = operation.default._schema.arguments
        assert len(arguments) == ARGUMENTS[variant]
        if variant.startswith("F"):
            assert str(arguments[1].type).startswith("Optional") == (variant == "F3")


def test_only_the_device_has_kernels() -> None:
    for variant in set(HAS) & set(ARGUMENTS):
        name = f"sgl_kernel::{OPERATIONS[variant[0]]}"
        assert torch._C._dispatch_has_kernel_for_dispatch_key(name, "XPU")
        for other in ("CPU", "Meta", "CUDA"):
            assert not torch._C._dispatch_has_kernel_for_dispatch_key(name, other)


@only("S1", "S2")
def test_cpu_tensors_are_refused() -> None:
    with pytest.raises(NotImplementedError, match=r"Could not run .* 'CPU' backend"):
        sgl_kernel.topk_sigmoid(
            torch.empty(1, 1), torch.empty(1, 1, dtype=torch.int32), torch.zeros(1, 8), False
        )


@only("S0")
def test_an_absent_operation_cannot_be_imported() -> None:
    with pytest.raises(ImportError):
        from sgl_kernel import topk_sigmoid  # noqa: F401


@only("F0")
def test_a_wrapper_without_its_operation_raises_when_called() -> None:
    with pytest.raises(AttributeError):
        sgl_kernel.moe_fused_gate(*random_inputs(1, 256), 8, 4, 8)


def test_anything_else_imports_and_raises_when_called() -> None:
    from sgl_kernel import kvcacheio, sgl_per_token_quant_fp8

    with pytest.raises(NotImplementedError, match="simulated sgl_kernel has no"):
        sgl_per_token_quant_fp8()
    with pytest.raises(NotImplementedError, match="kvcacheio"):
        kvcacheio.transfer_kv_per_layer()


@only("B1")
@pytest.mark.parametrize("E", [16, 128, 384, 512])
def test_biased_topk_agrees_with_the_reference(E: int) -> None:
    x, bias = random_inputs(9, E)
    answer = biased_topk(x, 16, bias + 7, renormalize=True)
    assert find_mismatch(*answer, x, bias + 7, RouterSpec(E, 16)) is None


@only("B1")
def test_biased_topk_scales_whenever_it_is_asked_to() -> None:
    x, bias = random_inputs(3, 64)
    raw = biased_topk(x, 4, bias)[0]
    more = dict(routed_scaling_factor=2.5, apply_routed_scaling_factor_on_output=True)
    assert torch.allclose(biased_topk(x, 4, bias, **more)[0], raw * 2.5)


@only("B1")
def test_biased_topk_answers_zero_where_none_is_left() -> None:
    bias = torch.full((8,), -torch.inf, device="xpu")
    bias[5] = 0.0
    weights, ids = biased_topk(torch.zeros(1, 8, device="xpu"), 3, bias)
    assert ids.tolist() == [[5, 0, 0]]
    assert weights.tolist() == [[0.5, 0.0, 0.0]]


@only("B1")
def test_biased_topk_sqrtsoftplus_overflows() -> None:
    weights = biased_topk(on_device([100.0, 1.0]), 2, torch.zeros(2, device="xpu"), "sqrtsoftplus")[
        0
    ]
    assert weights[0, 0] == torch.inf
    assert weights[0, 1].item() == pytest.approx((1.3132617) ** 0.5, rel=1e-5)


@only("B1")
def test_biased_topk_checks() -> None:
    x, bias = random_inputs(1, 513)
    with pytest.raises(RuntimeError, match="num_experts exceeds maximum"):
        biased_topk(x, 4, bias)
    x, bias = random_inputs(1, 64)
    with pytest.raises(RuntimeError, match="topk exceeds maximum"):
        biased_topk(x, 17, bias)
    with pytest.raises(RuntimeError, match="bias must be float32"):
        biased_topk(x, 4, bias.bfloat16())
    with pytest.raises(ValueError, match="Unknown scoring_func"):
        biased_topk(x, 4, bias, "softmax")


@only("B1")
def test_biased_topk_with_nan() -> None:
    x = on_device([torch.nan, 1.0, 0.0])
    if STRICT:
        with pytest.raises(RuntimeError, match="NaN"):
            biased_topk(x, 2, torch.zeros(3, device="xpu"))
    else:
        assert biased_topk(x, 3, torch.zeros(3, device="xpu"))[1].tolist() == [[1, 2, 0]]


def test_topk_softmax() -> None:
    x = torch.tensor([[1.0, 3.0, 2.0, 0.0]]).bfloat16()
    weights, ids = outputs(1, 2)
    sgl_kernel.topk_softmax(weights, ids, x.to("xpu"), False)
    assert ids.tolist() == [[1, 2]]
    assert torch.allclose(weights.cpu(), x.float().softmax(1)[:, [1, 2]])
    with pytest.raises(NotImplementedError, match="fused_topk_softmax_kernel"):
        sgl_kernel.topk_softmax(weights, ids, x.float().to("xpu"), False)
