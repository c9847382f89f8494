"""Load the simulated device and answer for it in `torch.xpu`."""

from __future__ import annotations

import contextlib
import os
from types import SimpleNamespace
from typing import Any

import torch

from sim_xpu import build

NAME = "simulated XPU (host memory)"


class Stream:
    """Operations have finished when they return, so there is never anything to wait for."""

    device = torch.device("xpu", 0)
    stream_id = 0

    def __init__(self, device: Any = None, priority: int = 0) -> None:
        self.priority = priority

    def query(self) -> bool:
        return True

    def record_event(self, event: Event | None = None) -> Event:
        return event or Event()

    def synchronize(self) -> None: ...

    def wait_event(self, event: Event) -> None: ...

    def wait_stream(self, stream: Stream) -> None: ...

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *error: object) -> None: ...


class Event:
    def __init__(self, enable_timing: bool = False) -> None: ...

    def query(self) -> bool:
        return True

    def record(self, stream: Stream | None = None) -> None: ...

    def synchronize(self) -> None: ...

    def wait(self, stream: Stream | None = None) -> None: ...


def _memory() -> tuple[int, int]:
    page = os.sysconf("SC_PAGE_SIZE")
    return page * os.sysconf("SC_AVPHYS_PAGES"), page * os.sysconf("SC_PHYS_PAGES")


def _properties(device: Any = None) -> SimpleNamespace:
    return SimpleNamespace(
        name=NAME,
        total_memory=_memory()[1],
        uuid="simulated",
        has_fp16=True,
        has_fp64=True,
        has_atomic64=True,
        gpu_eu_count=64,
        gpu_subslice_count=8,
        max_compute_units=64,
        max_work_group_size=1024,
        max_num_sub_groups=64,
        sub_group_sizes=[16, 32],
        version="simulated",
        driver_version="simulated",
        type="gpu",
        is_integrated=True,
    )


def install() -> None:
    """Make `torch.device("xpu")` work in this process; needs no hardware."""
    torch.ops.load_library(build.library())
    stream = Stream()
    answers = {
        "_initialized": True,
        "_lazy_init": lambda: None,
        "_lazy_call": lambda call, **_: call(),
        "_exchange_device": lambda device: 0,
        "_maybe_exchange_device": lambda device: 0,
        "init": lambda: None,
        "is_initialized": lambda: True,
        "is_available": lambda: True,
        "is_bf16_supported": lambda including_emulation=True: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "synchronize": lambda device=None: None,
        "get_device_name": lambda device=None: NAME,
        "get_device_properties": _properties,
        "get_device_capability": lambda device=None: vars(_properties()),
        "Stream": Stream,
        "Event": Event,
        "current_stream": lambda device=None: stream,
        "set_stream": lambda stream: None,
        "stream": lambda stream: contextlib.nullcontext(stream),
        "is_current_stream_capturing": lambda: False,
        "manual_seed": torch.default_generator.manual_seed,
        "manual_seed_all": torch.default_generator.manual_seed,
        "get_rng_state": lambda device="xpu": torch.default_generator.get_state(),
        "set_rng_state": lambda state, device="xpu": torch.default_generator.set_state(state),
        "default_generators": (torch.default_generator,),
        "empty_cache": lambda: None,
        "mem_get_info": lambda device=None: _memory(),
        "memory_allocated": lambda device=None: _memory()[1] - _memory()[0],
        "max_memory_allocated": lambda device=None: _memory()[1] - _memory()[0],
        "memory_reserved": lambda device=None: _memory()[1] - _memory()[0],
        "max_memory_reserved": lambda device=None: _memory()[1] - _memory()[0],
        "reset_peak_memory_stats": lambda device=None: None,
    }
    for name, answer in answers.items():
        setattr(torch.xpu, name, answer)
    # A build for CUDA would ask the missing driver for pinned memory.
    torch.Tensor.pin_memory = lambda self, device=None: self
