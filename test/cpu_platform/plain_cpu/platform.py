"""The platform class. SGLang's own CPU engine needs a kernel package that is not published."""

from __future__ import annotations

from typing import Any

from sglang.srt.platforms.cpu import CpuDeviceMixin
from sglang.srt.platforms.device_mixin import PlatformEnum
from sglang.srt.platforms.interface import SRTPlatform


class PlainCpuPlatform(CpuDeviceMixin, SRTPlatform):
    _enum = PlatformEnum.OOT

    def get_default_attention_backend(self) -> str:
        return "torch_native"

    def get_compile_backend(self, mode: str | None = None) -> str:
        return "eager"

    def is_pin_memory_available(self, device: Any = None) -> bool:
        return False

    def get_torch_distributed_backend_str(self) -> str:
        return "gloo"

    def post_load_model(self, model: Any) -> None:
        register_mla_for_torch_native()


def register_mla_for_torch_native() -> None:
    """Send DeepSeek's attention to the absorbed MLA method.

    SGLang has no handler for `torch_native`; its default takes the MHA path for prefill,
    which that backend can't serve.
    """
    from sglang.srt.models.deepseek_common.attention_backend_handler import AttentionBackendRegistry
    from sglang.srt.models.deepseek_common.attention_forward_methods.forward_methods import (
        AttnForwardMethod,
    )

    AttentionBackendRegistry.register(
        "torch_native", lambda attention, forward_batch: AttnForwardMethod.MLA
    )
