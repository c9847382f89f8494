"""Routers to compare with: name -> a function that binds one to a specification.

Each imports what it needs when it is bound, and raises UnavailableError with the reason if
that is not installed or refuses the shape. A peer is called as its users call it, its own
launcher included.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

    from sglang_moe_ext.ops.backend import Run
    from sglang_moe_ext.ops.spec import RouterSpec

Answer: TypeAlias = "tuple[Tensor, Tensor]"
Bind: TypeAlias = "Callable[[RouterSpec], Run]"


class UnavailableError(Exception):
    """This router cannot run here, or not this shape."""


def _need(condition: bool, reason: str) -> None:
    if not condition:
        raise UnavailableError(reason)


def torch_eager(spec: RouterSpec) -> Run:
    from sglang_moe_ext.bench.plain import plain_torch

    return lambda logits, bias: plain_torch(logits, bias, spec)


def torch_compiled(spec: RouterSpec) -> Run:
    import torch

    from sglang_moe_ext.bench.plain import plain_torch

    torch._dynamo.reset()
    compiled = torch.compile(plain_torch, dynamic=True)
    return lambda logits, bias: compiled(logits, bias, spec)


def sglang_gate(spec: RouterSpec) -> Run:
    """SGLang's Triton router, which hands 896/16 to its CUDA radix kernel."""
    _need(spec.device_type != "cpu", "compiles for GPUs only")
    try:
        from sglang.kernels.ops.moe.moe_fused_gate import moe_fused_gate
    except ImportError as error:
        raise UnavailableError(str(error)) from error

    def run(logits: Tensor, bias: Tensor) -> Answer:
        answer: Answer = moe_fused_gate(
            logits,
            bias,
            spec.topk,
            renormalize=spec.renormalize,
            routed_scaling_factor=spec.routed_scaling_factor,
            apply_routed_scaling_factor_on_output=spec.apply_routed_scaling_factor_on_output,
            num_expert_group=spec.num_expert_group,
            topk_group=spec.topk_group,
        )
        return answer

    return run


def flashinfer_gate(spec: RouterSpec) -> Run:
    _need(spec.device_type == "cuda", "runs on CUDA only")
    _need(spec.topk <= 8, f"top-{spec.topk}: at most 8")
    _need(spec.num_expert_group > 1 or spec.num_experts <= 384, "more than 384 experts")
    _need(spec.renormalize, "always renormalises")
    import torch

    try:
        from flashinfer.fused_moe import fused_topk_deepseek
    except ImportError as error:
        raise UnavailableError(str(error)) from error

    def run(logits: Tensor, bias: Tensor) -> Answer:
        weights = logits.new_empty((logits.shape[0], spec.topk), dtype=torch.float32)
        ids = logits.new_empty((logits.shape[0], spec.topk), dtype=torch.int32)
        groups = (spec.num_expert_group, spec.topk_group)
        # Its check compares top-k with the number of groups, so it refuses a single group that
        # its kernel serves well (flashinfer-ai/flashinfer#5165).
        fused_topk_deepseek(
            logits, bias, *groups, spec.topk, spec.output_scale, weights, ids, skip_check=True
        )
        return weights, ids

    return run


def _sglang_impl(spec: RouterSpec, compiled: bool) -> Run:
    import torch

    try:
        from sglang.srt.layers.moe.topk import biased_grouped_topk_impl
    except ImportError as error:
        raise UnavailableError(str(error)) from error
    if compiled:
        torch._dynamo.reset()
        impl = biased_grouped_topk_impl
    else:
        impl = biased_grouped_topk_impl._torchdynamo_orig_callable

    def run(logits: Tensor, bias: Tensor) -> Answer:
        answer: Answer = impl(
            logits,
            logits,
            bias,
            spec.topk,
            spec.renormalize,
            num_expert_group=spec.num_expert_group,
            topk_group=spec.topk_group,
            routed_scaling_factor=spec.routed_scaling_factor,
            apply_routed_scaling_factor_on_output=spec.apply_routed_scaling_factor_on_output,
        )
        return answer

    return run


def sglang_compiled(spec: RouterSpec) -> Run:
    """What SGLang runs where it has no kernel, a plain CPU among them."""
    return _sglang_impl(spec, compiled=True)


def sglang_eager(spec: RouterSpec) -> Run:
    return _sglang_impl(spec, compiled=False)


def ipex_gate(spec: RouterSpec) -> Run:
    """ipex leaves the activation, the normalisation and the scale to its caller."""
    _need(spec.device_type == "cpu", "the CPU operation is meant")
    import torch

    try:
        import intel_extension_for_pytorch  # noqa: F401
    except (ImportError, SystemExit) as error:
        raise UnavailableError(f"ipex: {error}") from error
    scale = torch.tensor(1.0)

    def run(logits: Tensor, bias: Tensor) -> Answer:
        groups = (spec.num_expert_group, spec.topk_group, spec.num_experts, spec.topk)
        ids, weights = torch.ops.torch_ipex.deepseek_moegate(
            logits, logits.sigmoid(), scale, *groups, bias
        )
        if spec.renormalize:
            weights = weights / weights.sum(-1, keepdim=True)
        return weights * spec.output_scale, ids.int()

    return run


PEERS: dict[str, Bind] = {
    "sglang_gate": sglang_gate,
    "flashinfer": flashinfer_gate,
    "sglang_compiled": sglang_compiled,
    "sglang_eager": sglang_eager,
    "ipex": ipex_gate,
    "torch_compiled": torch_compiled,
    "torch_eager": torch_eager,
}
