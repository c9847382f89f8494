"""A stand-in for Intel's `sgl_kernel` on the simulated XPU: the routing operations only.

Written from the kernels' documented behaviour, in PyTorch on host memory. It is a test
instrument: it raises where the real kernels are undefined (strict mode), or does as they
do (faithful mode). No Meta kernels, so tracing through it fails, as it does in reality.
"""

from __future__ import annotations

import torch

from . import _biased_topk, _moe_fused_gate, _topk_sigmoid, _topk_softmax, absent, layers
from .layers import fused_add_rmsnorm, fused_experts, rmsnorm, silu_and_mul
from .variants import CHOSEN, SCHEMAS

__all__ = [
    "fused_add_rmsnorm",
    "fused_experts",
    "moe_fused_gate",
    "rmsnorm",
    "silu_and_mul",
    "topk_softmax",
]

__version__ = "0.1.8"

_KERNELS = {
    "topk_softmax": _topk_softmax.kernel,
    "S1a": _topk_sigmoid.kernel,
    "S1": _topk_sigmoid.kernel,
    "S2": _topk_sigmoid.kernel,
    "F1": _moe_fused_gate.kernel_8_arguments,
    "F2": _moe_fused_gate.kernel,
    "F3": _moe_fused_gate.kernel,
    "B1": _biased_topk.kernel,
}
_library = torch.library.Library("sgl_kernel", "FRAGMENT")
for _name in ("topk_softmax", *CHOSEN.values()):
    if _name in SCHEMAS:
        _library.define(SCHEMAS[_name])
        _library.impl(SCHEMAS[_name].partition("(")[0], _KERNELS[_name], "XPU")
_library.define(layers.ROTARY_SCHEMA)
_library.impl("rotary_embedding", layers.rotary_embedding, "XPU")

topk_softmax = _topk_softmax.topk_softmax
moe_fused_gate = _moe_fused_gate.moe_fused_gate
if CHOSEN["S"] != "S0":
    topk_sigmoid = _topk_sigmoid.topk_sigmoid
if CHOSEN["B"] != "B0":
    biased_topk = _biased_topk.biased_topk

_ROUTING = ("topk_sigmoid", "biased_topk", "hash_topk")  # some versions lack them
_other = absent.getattr_of(__name__)
absent.install(hidden=[f"{__name__}.{name}" for name in _ROUTING])


def __getattr__(name: str) -> absent.Absent:
    if name in _ROUTING:
        raise AttributeError(f"simulated sgl_kernel {CHOSEN} has no {name}")
    return _other(name)
