"""MLA models on the `torch_native` attention backend, which has no handler of its own."""

from __future__ import annotations

from types import ModuleType


def install(handlers: ModuleType) -> None:
    """Always the absorbed form: the multi-head one needs kernels that only devices have."""
    handlers.AttentionBackendRegistry.register(
        "torch_native", lambda attention, forward_batch: handlers.AttnForwardMethod.MLA
    )
