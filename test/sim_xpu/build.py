"""Compile device.cpp once per source and PyTorch version, outside the tree."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import sys
import tempfile
from pathlib import Path

import torch

SOURCE = Path(__file__).with_name("device.cpp")


def cache_folder() -> Path:
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    key = hashlib.sha256(SOURCE.read_bytes() + torch.__version__.encode()).hexdigest()[:16]
    return root / "sglang-moe-ext" / "sim_xpu" / key


def library() -> Path:
    """Path of the compiled device; the first process builds it (half a minute), others wait."""
    folder = cache_folder()
    target = folder / "sim_xpu_device.so"
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "building", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            _compile(folder, target)
    return target


def _compile(folder: Path, target: Path) -> None:
    from torch.utils import cpp_extension

    print(f"simulated XPU: building {SOURCE.name} into {folder}", file=sys.stderr, flush=True)
    # ninja is usually installed beside this Python, which need not be on PATH.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    scratch = Path(tempfile.mkdtemp(dir=folder))
    try:
        cpp_extension.load(
            target.stem,
            [str(SOURCE)],
            extra_cflags=["-O1", "-Wno-deprecated-declarations"],
            build_directory=str(scratch),
            with_cuda=False,
            is_python_module=False,
        )
        # Renaming is atomic: a reader sees the whole library or none.
        (scratch / target.name).rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
