"""Where the figures come from: columns that are the same on every row."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path

import torch

from sglang_moe_ext import __version__

LIBRARIES = ("torch", "triton", "numba", "sglang", "flashinfer-python")
BUSY = 0.75  # load average per CPU


def describe_machine(device: str, commit: str | None) -> dict[str, str]:
    """device, driver, a version per library ("" where it is absent) and the commit."""
    if device == "cpu":
        threads = torch.get_num_threads()
        hardware, driver = f"{_cpu_model()}, {threads} thread{'s' * (threads > 1)}", ""
    else:
        hardware = getattr(torch, device).get_device_name()
        driver = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    versions = {name: _version(name) for name in LIBRARIES}
    return {"device": hardware, "driver": driver, **versions, "commit": commit or _commit()}


def find_other_work() -> str | None:
    """What distorts the figures of a CPU, in one line: threads wait for each other in turns."""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load < BUSY * cores:
        return None
    return (
        f"the machine is busy, load average {load:.1f} on {cores} CPUs: do not trust these figures"
    )


def _commit() -> str:
    """Of the checkout that we lie in, else our version.

    An environment may lie in somebody else's checkout, whose git does not know this file.
    """
    git = ("git", "-C", str(Path(__file__).parent))
    tracked = _output(*git, "ls-files", Path(__file__).name)
    return (tracked and _output(*git, "describe", "--always", "--dirty")) or __version__


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", info.read_text() if info.exists() else "")
    return found[1] if found else platform.processor()


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
