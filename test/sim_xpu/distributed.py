"""`xccl` process groups on `gloo`. One rank only: gloo doesn't take simulated tensors."""

from __future__ import annotations

import torch.distributed as dist
import wrapt


def install() -> None:
    for module, name in (
        ("torch.distributed.distributed_c10d", "init_process_group"),
        ("torch.distributed.distributed_c10d", "new_group"),
        ("torch.distributed", "init_process_group"),
        ("torch.distributed", "new_group"),
    ):
        wrapt.wrap_function_wrapper(module, name, _on_gloo)
    dist.is_xccl_available = lambda: True


def _on_gloo(wrapped, instance, args, kwargs):
    kwargs.pop("device_id", None)
    if "xccl" in str(kwargs.get("backend")):
        kwargs["backend"] = "gloo"
    return wrapped(*("gloo" if a == "xccl" else a for a in args), **kwargs)
