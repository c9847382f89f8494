"""Where a routing tensor came from: the file that holds it, and what came beside it."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sglang_moe_ext.parameters import is_bias_name, routing_parameters

logger = logging.getLogger(__name__)

_GATE = (".gate.weight", ".gate.bias")
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")


class Stray:
    """Routing tensors of a checkpoint that the model has no place for."""

    def __init__(self, model: nn.Module, model_config: Any) -> None:
        self._known = {each.name for each in routing_parameters(model)}
        config = getattr(model_config, "hf_text_config", None)
        layers = getattr(config, "num_hidden_layers", None)
        mtp = getattr(config, "num_nextn_predict_layers", None) or 0
        self._layers = layers + mtp if isinstance(layers, int) else None
        self._names: list[str] = []

    def watch(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in weights:
            if name not in self._known and (is_bias_name(name) or name.endswith(_GATE)):
                self._names.append(name)
            yield name, tensor

    def beside(self, name: str) -> str:
        """What of `name`'s layer came under a name that the model does not know."""
        layer = _layer(name)
        found = [
            other
            for other in self._names
            if layer is not None and _layer(other) == layer and not other.endswith(".weight")
        ]
        return f"; the checkpoint has {', '.join(found)}, which SGLang does not load" * bool(found)

    def warn(self) -> None:
        """Layers beyond the last one are harmless, or a sign of the wrong config.json."""
        for name in self._names:
            layer = _layer(name)
            if self._layers is not None and layer is not None and layer >= self._layers:
                logger.warning(
                    "%s is not loaded: config.json announces %d layers; "
                    "is it the right one for this checkpoint?",
                    name,
                    self._layers,
                )


def _layer(name: str) -> int | None:
    found = _LAYER.search(name)
    return int(found[1]) if found else None


def file_of(checkpoint: Path, key: str) -> str:
    """The file that holds a key, or that none does."""
    # Only for a message: it needs numpy.
    from sglang_moe_ext.checkpoint.tensors import BrokenFileError, read_header

    index = checkpoint / "model.safetensors.index.json"
    if index.is_file():
        files = json.loads(index.read_text(encoding="utf-8")).get("weight_map", {})
        if key not in files:
            return f"not in {index.name}"
        file = str(files[key])
        return file + ", which is absent" * (not (checkpoint / file).is_file())
    paths = sorted(checkpoint.glob("*.safetensors"))
    for path in paths:
        try:
            if key in read_header(path).entries:
                return path.name
        except BrokenFileError:
            continue
    if len(paths) == 1:
        return f"not in {paths[0].name}"
    return f"in none of {len(paths)} files" if paths else "no *.safetensors file"
