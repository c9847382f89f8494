"""An SGLang platform for machines with neither GPU nor AMX: SGLANG_PLATFORM=plain_cpu."""

from __future__ import annotations

import os


def activate() -> str | None:
    # SGLang activates every installed platform unless one is named; this one is for tests.
    selected = os.environ.get("SGLANG_PLATFORM") == "plain_cpu"
    return "plain_cpu.platform.PlainCpuPlatform" if selected else None
