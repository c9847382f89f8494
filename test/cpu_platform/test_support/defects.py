"""Ways in which a checkpoint's routing tensors go wrong, made from a healthy one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

GATE = "model.layers.1.mlp.gate.weight"
BIAS = "model.layers.1.mlp.gate.e_score_correction_bias"
Tensors = dict[str, Tensor]


def _set(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[Tensors], None]:
    def apply(tensors: Tensors) -> None:
        tensors[name] = change(tensors[name])

    return apply


def _misname_bias(tensors: Tensors) -> None:
    tensors["model.layers.1.mlp.gate.bias"] = tensors.pop(BIAS)


def _with_scale(tensors: Tensors) -> None:
    tensors[GATE] = tensors[GATE].to(torch.float8_e4m3fn)
    tensors[f"{GATE}_scale_inv"] = torch.ones(1, 1)


def _holding(value: float) -> Callable[[Tensor], Tensor]:
    def put(bias: Tensor) -> Tensor:
        changed = bias.clone()
        changed[3] = value
        return changed

    return put


def _merged_in_bfloat16(bias: Tensor) -> Tensor:
    return torch.linspace(6.8, 7.1, bias.numel()).bfloat16()


# Name -> (what is done to the tensors, what the refusal says).
DEFECTS: dict[str, tuple[Callable[[Tensors], object], str]] = {
    "bias missing": (lambda t: t.pop(BIAS), f"{BIAS} .*no value was loaded"),
    "bias misnamed": (_misname_bias, f"{BIAS} .*no value was loaded"),
    "bias too short": (_set(BIAS, lambda b: b[:-1]), f"{BIAS} .*has shape .*expected"),
    "bias [1, E]": (_set(BIAS, lambda b: b[None]), f"{BIAS} .*has shape .1, .*expected"),
    "bias NaN": (_set(BIAS, _holding(torch.nan)), f"{BIAS} .*1 of .* not finite.*nan at 3"),
    "bias inf": (_set(BIAS, _holding(torch.inf)), f"{BIAS} .*1 of .* not finite.*inf at 3"),
    "bias merged by bfloat16": (_set(BIAS, _merged_in_bfloat16), f"{BIAS} .*distinct values for"),
    "bias int64": (_set(BIAS, lambda b: b.long()), f"{BIAS} .*is stored as int64"),
    "gate missing": (lambda t: t.pop(GATE), f"{GATE} .*no value was loaded"),
    "gate of another width": (_set(GATE, lambda w: w[:, :-1]), f"{GATE} .*has shape .*expected"),
    "gate in FP8": (
        _set(GATE, lambda w: w.to(torch.float8_e4m3fn)),
        f"{GATE} .*is stored as float8_e4m3fn",
    ),
    "gate in FP8 with its scale": (_with_scale, f"{GATE} .*is stored as float8_e4m3fn"),
}


FILE = "model.safetensors"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
EXTRA_BIAS = BIAS.replace(".1.", ".7.")


def _add_a_layer(path: Path) -> None:
    tensors = load_file(path / FILE)
    tensors[EXTRA_BIAS] = tensors[BIAS].clone()
    tensors[GATE.replace(".1.", ".7.")] = tensors[GATE].clone()
    _save(tensors, path / FILE)


def split(path: Path) -> None:
    """Two shards and an index; the second holds the experts of the last layer only."""
    tensors = load_file(path / FILE)
    second = {name for name in tensors if ".layers.2.mlp.experts." in name}
    for shard, names in zip(SHARDS, (tensors.keys() - second, second), strict=True):
        _save({name: tensors[name] for name in sorted(names)}, path / shard)
    weight_map = {name: SHARDS[name in second] for name in tensors}
    index = {"metadata": {}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    (path / FILE).unlink()


def _lose_a_shard(path: Path) -> None:
    split(path)
    (path / SHARDS[1]).unlink()


def _truncate(path: Path) -> None:
    os.truncate(path / FILE, (path / FILE).stat().st_size - 1000)


def _corrupt_header(path: Path) -> None:
    with (path / FILE).open("r+b") as stream:
        stream.seek(8)
        stream.write(b"{" * 20)


# The same for what is wrong with files rather than with tensors; inspect names the subject.
FILE_DEFECTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "extra layers": (_add_a_layer, EXTRA_BIAS),
    "shard absent": (_lose_a_shard, SHARDS[1]),
    "file truncated": (_truncate, FILE),
    "header corrupt": (_corrupt_header, FILE),
    "no config": (lambda path: (path / "config.json").unlink(), "config.json"),
}


def make_defective(healthy: Path, folder: Path, name: str) -> Path:
    """A copy of `healthy` under `folder` with one defect."""
    path = folder / "defective"
    shutil.copytree(healthy, path)
    if name in FILE_DEFECTS:
        FILE_DEFECTS[name][0](path)
        return path
    tensors = load_file(path / FILE)
    DEFECTS[name][0](tensors)
    _save(tensors, path / FILE)
    return path


def _save(tensors: Tensors, file: Path) -> None:
    save_file({k: v.contiguous() for k, v in tensors.items()}, file, metadata={"format": "pt"})
