"""Which routers conformance.py runs, and what each needs of a machine."""

from __future__ import annotations

import shutil
from dataclasses import dataclass

import torch

# Not run: the backend refuses the shape with a reason, so that the next one serves; or it would
# take too long.
OK, WRONG, NOT_RUN = "ok", "wrong", "not run"


@dataclass(frozen=True)
class Column:
    """A router under test.

    backend: ours, or None for SGLang's own. heading: in the README. most_rows: that it is given.
    device: of the tensors. interpreted: by Triton.
    """

    heading: str
    backend: str | None
    most_rows: int
    device: str = "cpu"
    interpreted: bool = False


COLUMNS = {
    "reference": Column("`reference`", "reference", 2048),
    "torch": Column("`torch`", "torch", 4097),
    "cpu": Column("`cpu`", "cpu", 65536),
    "triton": Column("`triton`, interpreted", "triton", 16, interpreted=True),
    "triton-cuda": Column("`triton`, CUDA", "triton", 65536, device="cuda"),
    "xpu": Column("`xpu`, simulated", "xpu", 4097, device="xpu"),
    "stock": Column("SGLang: PyTorch", None, 4097),
    "stock-triton": Column("SGLang: Triton, interpreted", None, 16, interpreted=True),
    "stock-cuda": Column("SGLang: CUDA", None, 65536, device="cuda"),
}
# Columns that share a process, by the environment that they need. A kernel that breaks its CUDA
# context takes nobody else along.
GROUPS = {
    "plain": ("reference", "torch", "cpu", "stock"),
    "interpreter": ("triton", "stock-triton"),
    "simulated XPU": ("xpu",),
    "CUDA": ("triton-cuda",),
    "SGLang on CUDA": ("stock-cuda",),
}


def missing(group: str) -> str | None:
    """What this machine lacks to run it."""
    if group == "simulated XPU" and not shutil.which("c++"):
        return "the simulated XPU needs a C++ compiler (c++)"
    if "CUDA" in group and not torch.cuda.is_available():
        return "needs a CUDA device"
    return None
