"""Backend `xpu`: Intel's fused operations select the experts, PyTorch weighs them.

XPU_RULES says which operation serves which call. None of them is trusted with the weights:

- `topk_sigmoid` recovers a score as (score + bias) - bias. The error is absolute, half an
  ulp of the key, while scores have no lower bound, so no bias is small enough to be safe:
  at bias 0.5 a score of 1e-3 is already off by 3e-5.
- All of them return 0 or NaN where the scores of a row underflow.
- Which of them multiplies by the factor when, and what a shared slot weighs, differs by
  operation, variant and flags.

So only their ids are used, for routed experts only; the weights are recomputed from the
logits of the selected experts, a handful of [T, K] operations without a synchronisation,
and shared slots are appended.

The inputs are made harmless on the device in every call, because what is harmful depends on
values: a decision kept per bias would go stale when a loader writes through `.data`, which
no version counter sees.

- A banned (-inf) or NaN bias becomes a floor that still exceeds the mark by which the
  operation knows experts that it has taken (-10000, or the lowest float32), and its logits
  -inf, so that even fewer selectable experts than K yield distinct ids, the banned ones
  last, lowest first, of weight 0.
- A NaN logit becomes -inf.

Beside the operation itself that is eleven small launches, a twelfth if the factor is applied
here; their cost on Intel hardware was never measured.

Known deviations from the reference, all of them safe (ids distinct and in range):

- A NaN logit scores 0, so its expert ranks by bias alone instead of below every number.
- `topk_sigmoid` with a power of two of experts: biases below -9000 count as -9000.
- Grouped, with fewer than topk_group groups that have two selectable experts: a group
  with one goes before a group with none, whatever their indices.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, pad

from sglang_moe_ext.limits import XPU_RULES, Rule
from sglang_moe_ext.ops import xpu_kernels
from sglang_moe_ext.ops.backend import Prepared
from sglang_moe_ext.ops.spec import RouterSpec
from sglang_moe_ext.ops.xpu_kernels import Kernel

# (logits [T, E], bias [E], both float32 and contiguous) -> ids [T, K-S] int32
Select = Callable[[Tensor, Tensor], Tensor]


def _is_power_of_two(n: int) -> bool:
    return n & (n - 1) == 0


def _refusal(rule: Rule, spec: RouterSpec) -> str | None:
    """None if the operation serves the specification in this process, else why not."""
    kernel = rule.refusal(spec) or xpu_kernels.find(rule.operation)
    return kernel if isinstance(kernel, str) else None


def supports(spec: RouterSpec) -> str | None:
    if spec.device_type != "xpu":
        return f"serves tensors on xpu, found {spec.device_type}"
    if spec.per_token_bias:
        return "no operation of sgl_kernel takes a bias per token"
    refusals = [_refusal(rule, spec) for rule in XPU_RULES]
    # A library that cannot be imported is the same reason three times.
    return None if None in refusals else "; ".join(dict.fromkeys(why for why in refusals if why))


def prepare(spec: RouterSpec) -> Prepared:
    rule = next(rule for rule in XPU_RULES if _refusal(rule, spec) is None)
    kernel = xpu_kernels.find(rule.operation)
    assert isinstance(kernel, Kernel)  # _refusal() has asked
    select = _ADAPTERS[rule.operation](kernel, spec)
    # The mark of taken experts is -10000 in one kernel, the lowest float32 in the others.
    marks_high = rule.operation == "topk_sigmoid" and _is_power_of_two(spec.num_experts)
    floor = -9000.0 if marks_high else -1e30

    def run(logits: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        return _route(logits, bias, select, floor, spec)

    return Prepared(run, f"{kernel}: {_words(spec)}")


def _words(spec: RouterSpec) -> str:
    groups = (
        "one group"
        if spec.num_expert_group == 1
        else f"{spec.topk_group} of {spec.num_expert_group} groups"
    )
    shared = f" and {spec.num_fused_shared_experts} shared" if spec.num_fused_shared_experts else ""
    return f"{groups}, {spec.num_experts} experts, top-{spec.topk_routed}{shared}"


def _route(
    logits: Tensor, bias: Tensor, select: Select, floor: float, spec: RouterSpec
) -> tuple[Tensor, Tensor]:
    """Route `logits` [T, E] with `bias` [E]; floor: the lowest bias that `select` is given."""
    bias = bias.float()
    ban = torch.where(bias > -torch.inf, 0.0, bias)  # [E], -inf or NaN where banned
    x = (logits + ban).nan_to_num_(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    x = x.contiguous()  # the sum of rows that overlap may not be
    ids = select(x, torch.where(bias > floor, bias, floor))
    weights = _weigh(x.gather(1, ids.long()), spec)
    S = spec.num_fused_shared_experts
    if S:
        shared = torch.arange(
            spec.num_experts, spec.num_experts + S, dtype=torch.int32, device=ids.device
        )
        ids = torch.cat([ids, shared.expand(ids.shape[0], S)], dim=1)
        weights = pad(weights, (0, S), value=spec.shared_weight)
    return weights, ids


def _weigh(x: Tensor, spec: RouterSpec) -> Tensor:
    """Weights of selected logits [T, K-S]; -inf weighs 0."""
    weights = _shares(x) if spec.renormalize else x.sigmoid()
    return weights if spec.output_scale == 1 else weights * spec.output_scale


def _shares(x: Tensor) -> Tensor:
    """Scores divided by their sum: the softmax of their logarithms, which don't underflow."""
    return logsigmoid(x).softmax(dim=1).nan_to_num_(nan=0.0)  # a row of -inf is 0/0


def _outputs(x: Tensor, spec: RouterSpec) -> tuple[Tensor, Tensor]:
    shape = (x.shape[0], spec.topk_routed)
    return x.new_empty(shape), x.new_empty(shape, dtype=torch.int32)


def _topk_sigmoid(kernel: Kernel, spec: RouterSpec) -> Select:
    def select(x: Tensor, bias: Tensor) -> Tensor:
        weights, ids = _outputs(x, spec)
        kernel.call(weights, ids, x, False, bias)
        return ids

    return select


def _moe_fused_gate(kernel: Kernel, spec: RouterSpec) -> Select:
    # By keyword: 79fdda65 inserted these two in the middle of the positional order.
    inserted = {} if kernel.variant == "F1" else {"renormalize": False, "scoring_func": "sigmoid"}

    def select(x: Tensor, bias: Tensor) -> Tensor:
        _, ids = kernel.call(
            x,
            bias,
            spec.num_expert_group,
            spec.topk_group,
            spec.topk_routed,
            routed_scaling_factor=1.0,  # its own default is 0
            apply_routed_scaling_factor_on_output=False,
            **inserted,
        )
        return ids  # type: ignore[no-any-return]

    return select


def _biased_topk(kernel: Kernel, spec: RouterSpec) -> Select:
    def select(x: Tensor, bias: Tensor) -> Tensor:
        weights, ids = _outputs(x, spec)
        kernel.call(x, bias, weights, ids, spec.topk_routed, scoring_func="sigmoid")
        return ids

    return select


_ADAPTERS: dict[str, Callable[[Kernel, RouterSpec], Select]] = {
    "topk_sigmoid": _topk_sigmoid,
    "moe_fused_gate": _moe_fused_gate,
    "biased_topk": _biased_topk,
}
