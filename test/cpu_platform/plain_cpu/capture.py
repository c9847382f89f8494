"""PLAIN_CPU_CAPTURE=<directory>: keep what the router of each worker was given and chose.

Files `<pid>-<number>.pt` hold one call each: layer_id, hidden_states [T, H] and ids [T, K].
It hooks `select_experts`, so it sees stock SGLang and an overridden router alike.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any


def register() -> None:
    folder = os.environ.get("PLAIN_CPU_CAPTURE")
    if not folder:
        return
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register(
        "sglang.srt.layers.moe.topk.select_experts", _saver(Path(folder)), HookType.AFTER
    )


def _saver(folder: Path) -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    numbers = itertools.count()

    def save(result: Any, hidden_states: Any, *args: Any, layer_id: Any = None, **kw: Any) -> None:
        import torch

        path = folder / f"{os.getpid()}-{next(numbers):06}.pt"
        call = {
            "layer_id": layer_id,
            "hidden_states": hidden_states.clone(),
            "ids": result.topk_ids.clone(),
        }
        torch.save(call, path.with_suffix(".part"))
        path.with_suffix(".part").rename(path)

    return save
