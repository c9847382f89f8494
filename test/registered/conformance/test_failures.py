"""Every built failure against every backend that runs here: exact ids, weights to 1e-5."""

from __future__ import annotations

import pytest
import torch
from test_support.failure_cases import CASES, Case

from sglang_moe_ext.ci import register_cpu_ci, run_file
from sglang_moe_ext.ops import biased_grouped_topk
from sglang_moe_ext.ops.choose import candidates

register_cpu_ci(est_time=10, suite="base-a-test-cpu")

# F24 and F26 are properties of the shared slots that F23 and F25 pin down: exactly the ids
# E, E+1, ... in the last columns, the same at every call.


@pytest.mark.parametrize("backend", candidates("cpu"))
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_failure_does_not_happen(case: Case, backend: str) -> None:
    arguments = {"renormalize": True, **case.arguments}
    weights, ids = biased_grouped_topk(
        case.logits, case.bias, len(case.ids), **arguments, backend=backend
    )
    rows = case.logits.shape[0]
    assert ids.tolist() == [list(case.ids)] * rows
    assert weights.isfinite().all()
    if case.weights is not None:
        expected = torch.tensor([case.weights] * rows)
        torch.testing.assert_close(weights, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("backend", candidates("cpu"))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("bias_dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_f16_no_buffer_is_reinterpreted(
    dtype: torch.dtype, bias_dtype: torch.dtype, backend: str
) -> None:
    """The same values in nine pairs of dtypes give the same answer."""
    logits = (torch.arange(256) * 37 % 256 - 128)[None].float() / 32  # exact in bfloat16
    bias = (torch.arange(256) * 11 % 32).float() / 32
    expected = biased_grouped_topk(logits, bias, 8, True, 8, 4, backend="reference")
    found = biased_grouped_topk(
        logits.to(dtype), bias.to(bias_dtype), 8, True, 8, 4, backend=backend
    )
    assert found[1].tolist() == expected[1].tolist()
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=0)


@pytest.mark.parametrize("backend", candidates("cpu"))
def test_f30_strides_are_respected(backend: str) -> None:
    wide = torch.randn(9, 3 * 72, generator=torch.Generator().manual_seed(0))
    bias = torch.randn(2 * 60, generator=torch.Generator().manual_seed(1))
    transposed = wide.t().contiguous().t()
    for logits in (wide[:, :60], wide[:, 7:67], wide[::2, 72:132], transposed[:, 5:65]):
        expected = biased_grouped_topk(
            logits.contiguous(), bias[::2].contiguous(), 4, True, backend=backend
        )
        found = biased_grouped_topk(logits, bias[::2], 4, True, backend=backend)
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])


@pytest.mark.parametrize("backend", candidates("cpu"))
@pytest.mark.parametrize("rows", [0, 1, 16, 63, 1025])
def test_f28_f35_every_row_is_written(rows: int, backend: str) -> None:
    logits = torch.randn(rows, 256, generator=torch.Generator().manual_seed(2))
    weights, ids = biased_grouped_topk(logits, torch.zeros(256), 8, True, 8, 4, backend=backend)
    assert weights.shape == ids.shape == (rows, 8)
    assert weights.dtype == torch.float32
    assert ids.dtype == torch.int32
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(rows))
    assert ((ids >= 0) & (ids < 256)).all()


@pytest.mark.parametrize("backend", candidates("cpu"))
def test_rows_do_not_depend_on_their_batch(backend: str) -> None:
    """F06, F29: alone, elsewhere, in another batch size: the same bits."""
    logits = torch.randn(67, 160, generator=torch.Generator().manual_seed(3)) * 4
    bias = torch.randn(160, generator=torch.Generator().manual_seed(4)) / 8
    weights, ids = biased_grouped_topk(logits, bias, 8, True, backend=backend)
    for row in (0, 31, 66):
        alone = biased_grouped_topk(logits[row : row + 1], bias, 8, True, backend=backend)
        assert torch.equal(alone[0][0], weights[row])
        assert torch.equal(alone[1][0], ids[row])
    flipped = biased_grouped_topk(logits.flip(0), bias, 8, True, backend=backend)
    assert torch.equal(flipped[0].flip(0), weights)
    assert torch.equal(flipped[1].flip(0), ids)


if __name__ == "__main__":
    run_file(__file__)
