"""Biased top-k on XPU in the Nemotron-3-Nano configuration, against the reference.

The same on hardware and on the simulated device; skipped where there is neither.
"""

from __future__ import annotations

import pytest
import torch

from sglang_moe_ext.ci import register_xpu_ci, run_file
from sglang_moe_ext.ops import xpu_router
from sglang_moe_ext.ops.compare import find_mismatch
from sglang_moe_ext.ops.spec import RouterSpec

register_xpu_ci(est_time=5, suite="stage-b-test-1-gpu-xpu")

pytestmark = pytest.mark.skipif(
    not torch.xpu.is_available(), reason="neither an Intel GPU nor the simulated XPU (test/sim_xpu)"
)

NEMOTRON_3_NANO = RouterSpec(
    num_experts=128,
    topk=6,
    routed_scaling_factor=2.5,
    apply_routed_scaling_factor_on_output=True,
    logits_dtype=torch.bfloat16,
    device_type="xpu",
)


@pytest.mark.parametrize("tokens", [1024, 2048, 4096, 8192])
def test_nemotron_3_nano(tokens: int) -> None:
    generator = torch.Generator().manual_seed(tokens)
    logits = torch.randn(tokens, 128, generator=generator).bfloat16()
    bias = torch.randn(128, generator=generator)

    refusal = xpu_router.supports(NEMOTRON_3_NANO)
    assert refusal is None
    prepared = xpu_router.prepare(NEMOTRON_3_NANO)
    weights, ids = prepared.run(logits.to("xpu"), bias.to("xpu"))

    assert "sgl_kernel.topk_sigmoid" in prepared.detail
    assert weights.device.type == ids.device.type == "xpu"
    assert find_mismatch(weights, ids, logits, bias, NEMOTRON_3_NANO) is None


if __name__ == "__main__":
    run_file(__file__)
