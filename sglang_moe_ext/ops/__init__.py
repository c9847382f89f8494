"""The routing operation and its backends. Nothing here knows SGLang."""

from sglang_moe_ext.ops import compiled as compiled  # registers the operator for torch.compile
from sglang_moe_ext.ops.dispatch import biased_grouped_topk
from sglang_moe_ext.ops.spec import RouterSpec

__all__ = ["RouterSpec", "biased_grouped_topk"]
