"""Ids on the simulated XPU leave the post-processing that SGLang forgets there finished."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from sglang_moe_ext.router import make_post_processor


def test_routed_columns_are_physical_and_padded_rows_minus_one() -> None:
    table = torch.tensor([3, 0, 9, 1, 4, 8, 2, 11], device="xpu")
    post_process = make_post_processor(
        lambda ids, weights, *more, **options: (ids, weights, ids), lambda ids, info: info[ids]
    )
    ids = torch.tensor([[0, 2, 8], [7, 4, 8]], dtype=torch.int32, device="xpu")
    config = SimpleNamespace(num_fused_shared_experts=1, use_grouped_topk=True)
    weights, logits = torch.ones(2, 3, device="xpu"), torch.zeros(2, 8, device="xpu")
    valid = torch.tensor(1, device="xpu")
    found, _, recorded = post_process(ids, weights, config, logits, 0, valid, table)
    assert found.device.type == "xpu"
    assert found.dtype == torch.int32
    assert found.tolist() == [[3, 9, 8], [-1, -1, -1]]
    assert recorded.tolist() == [[3, 9], [-1, -1]]
