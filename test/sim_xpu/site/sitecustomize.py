"""Runs at the start of every Python process that has this folder on PYTHONPATH."""

import os
import sys
from pathlib import Path

if os.environ.get("SIM_XPU") == "1":
    import wrapt

    # No compiler targets the simulated device; functions marked for it run as written.
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    sys.path.append(str(Path(__file__).resolve().parents[2]))

    @wrapt.when_imported("torch")
    def _simulate(torch):
        from sim_xpu import device, distributed

        device.install()
        distributed.install()

    @wrapt.when_imported("sglang.srt.platforms.xpu")
    def _no_pinned_memory(platform):
        # A PyTorch built for CUDA would ask the missing driver for it.
        platform.XpuDeviceMixin.is_pin_memory_available = lambda self, device=None: False

    @wrapt.when_imported("sglang.srt.models.deepseek_common.attention_backend_handler")
    def _absorbed_mla(handlers):
        from sim_xpu import attention

        attention.install(handlers)
