"""The inputs, and whether a router's answers to them are right."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sglang_moe_ext.bench.timing import Input
from sglang_moe_ext.ops.backend import Run
from sglang_moe_ext.ops.compare import find_mismatch
from sglang_moe_ext.ops.spec import RouterSpec

INPUTS = 16
CHECKED_ROWS = 512


def make_inputs(spec: RouterSpec, tokens: int) -> list[Input]:
    """Different logits, one bias, as consecutive steps of one layer have."""
    generator = torch.Generator().manual_seed(tokens)
    bias = (0.1 * torch.randn(spec.num_experts, generator=generator)).to(spec.device_type)
    logits = torch.randn(INPUTS, tokens, spec.num_experts, generator=generator) * 1.5
    return [Input(x, bias) for x in logits.to(spec.device_type, spec.logits_dtype)]


def find_wrong(run: Run, inputs: Sequence[Input], spec: RouterSpec) -> str | None:
    """None if a sample of rows is right, in the order of their keys, which not every peer
    promises; else what is wrong."""
    for logits, bias in inputs if len(inputs[0].logits) <= CHECKED_ROWS else inputs[:1]:
        weights, ids = run(logits, bias)
        sample = torch.linspace(0, len(logits) - 1, min(len(logits), CHECKED_ROWS)).long()
        weights, ids, x = (each[sample.to(each.device)].cpu() for each in (weights, ids, logits))
        key = x.double().sigmoid().float() + bias.cpu().float()
        if ids.min() < 0 or ids.max() >= spec.num_experts:
            return f"ids outside 0..{spec.num_experts - 1}"
        by_id = ids.sort(dim=1).indices
        by_key = key.gather(1, ids.gather(1, by_id).long())
        by_key = by_key.sort(dim=1, descending=True, stable=True).indices
        order = by_id.gather(1, by_key)
        wrong = find_mismatch(
            weights.float().gather(1, order), ids.gather(1, order), x, bias.cpu(), spec
        )
        if wrong:
            return wrong
    return None
