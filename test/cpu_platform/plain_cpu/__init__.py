"""An SGLang platform for machines with neither GPU nor AMX: SGLANG_PLATFORM=plain_cpu."""


def activate() -> str:
    return "plain_cpu.platform.PlainCpuPlatform"
