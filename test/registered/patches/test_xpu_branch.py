"""The router's XPU branch of each release with patch 0002, run on CPU tensors.

The function is lifted out of the patched file and called with stand-ins for the device and
for `sgl_kernel.topk_sigmoid`; so this shows what reaches the kernel and what is made of its
results, nothing about the kernel itself.
"""

import ast
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "releases"))

from release_checks import ROOT, apply_patches, package_of

from sglang_moe_ext.ci import register_cpu_ci, run_file
from sglang_moe_ext.patch_files import Release, find_patches
from sglang_moe_ext.patching import plan

register_cpu_ci(est_time=7, suite="base-a-test-cpu")

RELEASES = ["0.5.2", "0.5.5.post3", "0.5.9", "0.5.12", "0.5.15", "0.5.18"]
TOPK = "srt/layers/moe/topk.py"
E, K = 16, 4


class XpuTensor(torch.Tensor):
    """A CPU tensor that says it is on XPU where SGLang asks for the device type."""

    @property
    def device(self) -> Any:
        return SimpleNamespace(type="xpu")


def sigmoid_topk(weights, ids, logits, renormalize, bias):
    """What sgl_kernel.topk_sigmoid computes, with the limits it has."""
    if bias.dtype != torch.float32:
        raise RuntimeError(f"bias is {bias.dtype}, expected float32")
    if not logits.is_contiguous() or logits.shape[0] == 0:
        raise RuntimeError("logits must be dense and not empty")
    scores = logits.float().sigmoid()
    ids.copy_((scores + bias).topk(ids.shape[1], sorted=True)[1])
    weights.copy_(scores.gather(1, ids.long()))
    if renormalize:
        weights /= weights.sum(-1, keepdim=True)


def logical_to_physical(ids, info):
    return ids if info is None else info[ids.long()].int()


def mask_padded_rows(ids, num_token_non_padded=None) -> None:
    if num_token_non_padded is not None:
        ids[num_token_non_padded:] = -1


@pytest.fixture(params=RELEASES)
def release(request: pytest.FixtureRequest) -> Release:
    return Release.parse(request.param)


@pytest.fixture
def router(release: Release, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`biased_grouped_topk_gpu` of the patched release."""
    package = package_of(str(release))
    patches = [
        patch
        for patch in find_patches(ROOT / "patches", release)
        if patch.header["Series"] == "xpu"
    ]
    _, texts = plan(patches, apply_patches.reader(package))
    tree = ast.parse(texts[TOPK] or "")
    named = [node for node in tree.body if getattr(node, "name", "") == "biased_grouped_topk_gpu"]
    kernels = ModuleType("sgl_kernel")
    kernels.topk_sigmoid = sigmoid_topk
    monkeypatch.setitem(sys.modules, "sgl_kernel", kernels)
    scope = {
        "torch": torch,
        "topk_sigmoid": sigmoid_topk,
        "topk_ids_logical_to_physical": logical_to_physical,
        "_mask_topk_ids_padded_region": mask_padded_rows,
        "is_power_of_two": lambda n: n & (n - 1) == 0,
        "_is_xpu": True,
        **dict.fromkeys(("_is_cuda", "_is_hip", "_is_npu", "_is_musa", "_use_aiter"), False),
    }
    future = ast.parse("from __future__ import annotations").body
    exec(compile(ast.Module([*future, *named], []), TOPK, "exec"), scope)
    return scope["biased_grouped_topk_gpu"]


def call(router: Any, release: Release, tokens: int = 5, **options: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(tokens, 2 * E, generator=generator)[:, ::2]
    bias = options.pop("bias", torch.linspace(0, 1, E))
    wanted = sigmoid_expected(logits, bias, options)
    # up to 0.5.12 the branch asks the tensor for its device, later a flag of the module
    given = logits.as_subclass(XpuTensor) if release < (0, 5, 13) else logits
    arguments = {"renormalize": True, "num_expert_group": 1, "topk_group": 1} | options
    found = router(
        hidden_states=logits, gating_output=given, correction_bias=bias, topk=K, **arguments
    )
    return [each.as_subclass(torch.Tensor) for each in found], wanted


def sigmoid_expected(logits: Any, bias: Any, options: dict[str, Any]) -> Any:
    scores = logits.sigmoid()
    ids = (scores + bias.float()).topk(K, sorted=True)[1]
    weights = scores.gather(1, ids)
    if options.get("renormalize", True):
        weights = weights / weights.sum(-1, keepdim=True)
    if options.get("apply_routed_scaling_factor_on_output"):
        weights = weights * (options.get("routed_scaling_factor") or 1.0)
    return weights, ids.int()


@pytest.mark.parametrize("renormalize", [True, False], ids=["renorm", "plain"])
@pytest.mark.parametrize("apply", [True, False], ids=["apply", "keep"])
@pytest.mark.parametrize("factor", [2.5, None], ids=["factor 2.5", "no factor"])
def test_factor_applies_if_and_only_if_asked(
    router: Any, release: Release, renormalize: bool, apply: bool, factor: float | None
) -> None:
    (weights, ids), wanted = call(
        router,
        release,
        renormalize=renormalize,
        routed_scaling_factor=factor,
        apply_routed_scaling_factor_on_output=apply,
    )
    torch.testing.assert_close(weights, wanted[0])
    assert torch.equal(ids, wanted[1])


def test_bf16_bias_reaches_the_kernel_as_fp32(router: Any, release: Release) -> None:
    bias = torch.linspace(0, 1, E, dtype=torch.bfloat16)
    (_, ids), wanted = call(router, release, bias=bias)
    assert torch.equal(ids, wanted[1])


def test_no_tokens_no_launch(router: Any, release: Release) -> None:
    (weights, ids), _ = call(router, release, tokens=0)
    assert (weights.shape, weights.dtype) == ((0, K), torch.float32)
    assert (ids.shape, ids.dtype) == ((0, K), torch.int32)


def test_eplb_and_padding_up_to_0_5_9(router: Any, release: Release) -> None:
    if release[:3] > (0, 5, 9):
        with pytest.raises(TypeError, match="num_token_non_padded"):
            call(router, release, num_token_non_padded=3)
        return
    physical = torch.arange(E).flip(0)
    (_, ids), wanted = call(
        router, release, num_token_non_padded=3, expert_location_dispatch_info=physical
    )
    assert torch.equal(ids[:3], physical[wanted[1][:3].long()].int())
    assert (ids[3:] == -1).all()


if __name__ == "__main__":
    run_file(__file__)
