"""PLAIN_CPU_CAPTURE=<directory>: keep what the router of each worker was given and chose.

Files `<pid>-<number>.pt` hold one call each: layer_id, hidden_states [T, H], ids [T, K], and
for every row the token, its position and the slot of its request. It hooks `select_experts`,
so it sees stock SGLang and an overridden router alike.
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

    capture = _Capture(Path(folder))
    model = "sglang.srt.models.deepseek_v2.DeepseekV2ForCausalLM.forward"
    HookRegistry.register(model, capture.enter, HookType.BEFORE)
    router = "sglang.srt.layers.moe.topk.select_experts"
    HookRegistry.register(router, capture.save, HookType.AFTER)


class _Capture:
    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._numbers = folder, itertools.count()
        self._rows: dict[str, Any] = {}

    def enter(
        self, model: Any, input_ids: Any, positions: Any, batch: Any, *args: Any, **kwargs: Any
    ) -> None:
        slots = batch.req_pool_indices
        if batch.forward_mode.is_extend():
            slots = slots.repeat_interleave(batch.extend_seq_lens)
        self._rows = {"tokens": input_ids, "positions": positions, "slots": slots}

    def save(
        self, result: Any, hidden_states: Any, *args: Any, layer_id: Any = None, **kw: Any
    ) -> None:
        import torch

        path = self._folder / f"{os.getpid()}-{next(self._numbers):06}.part"
        call = {"hidden_states": hidden_states, "ids": result.topk_ids, **self._rows}
        torch.save({"layer_id": layer_id, **{k: v.clone() for k, v in call.items()}}, path)
        path.rename(path.with_suffix(".pt"))
