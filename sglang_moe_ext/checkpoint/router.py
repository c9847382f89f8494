"""The router of one layer as the checkpoint stores it, and what is wrong with it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from math import prod

import numpy as np

from sglang_moe_ext.checkpoint.findings import NOTE, PROBLEM, Finding
from sglang_moe_ext.checkpoint.folder import Folder
from sglang_moe_ext.checkpoint.routing import Layer, Routing
from sglang_moe_ext.checkpoint.tensors import FLOATS, Entry, Floats, can_decode, read_values

_PACKED = ("weight_packed", "qweight")
_SCALES = ("weight_scale_inv", "weight_scale", "scales")
_UNQUANTIZED = "BF16, F16 or F32: SGLang never dequantises a gate"
_KEEP_GATE = "restore the gate from the original, and leave gates out of the quantisation"
# Where a bias may have strayed to: every spelling that one of the families uses, and "bias".
_STRAY_BIAS = re.compile(
    r"(?:mlp|block_sparse_moe|mixer)\.(?:gate\.|router\.|router\.gate\.|moe_statics\.|experts\.)?"
    r"(?:bias|expert_bias|e_score_correction_bias)"
)


@dataclass(slots=True)
class Router:
    """Gate and bias of one layer. Entries are None if absent.

    weight: gate values [E, H]; bias: the values, flattened; None where they cannot be used.
    norm: values [H] of the RMSNorm before the gate, if they can be read.
    """

    layer: Layer
    gate_name: str
    gate: Entry | None
    bias_name: str
    bias_entry: Entry | None
    gate_quantized: bool = False
    weight: Floats | None = None
    norm: Floats | None = None
    bias: Floats | None = None
    findings: list[Finding] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        return self.gate is None and self.bias_entry is None

    def problem(self, subject: str, found: str, expected: str, remedy: str) -> None:
        self.findings.append(Finding(self.layer.label, PROBLEM, subject, found, expected, remedy))

    def note(self, subject: str, found: str, expected: str, remedy: str) -> None:
        self.findings.append(Finding(self.layer.label, NOTE, subject, found, expected, remedy))


def read_router(folder: Folder, routing: Routing, layer: Layer) -> Router:
    family = routing.family
    gate_name, gate = _locate(folder, layer, family.gate)
    bias_name, bias = _locate(folder, layer, family.bias)
    router = Router(layer, gate_name, gate, bias_name, bias)
    tails = [n.removeprefix(layer.path) for n in folder.entries if n.startswith(layer.path)]
    if layer.is_mtp and not tails:
        router.note(
            layer.path + "*",
            "no tensors",
            "the MTP layer that config.json announces",
            "nothing to do unless you want speculative decoding with it",
        )
        return router
    _read_gate(router, routing, folder)
    _read_bias(router, routing, folder, tails)
    norm = folder.entries.get(layer.path + family.norm)
    if router.weight is not None and norm and norm.shape == router.weight.shape[1:]:
        router.norm = read_values(norm) if can_decode(norm) else None
    return router


def _locate(folder: Folder, layer: Layer, tails: tuple[str, ...]) -> tuple[str, Entry | None]:
    for tail in tails:
        if layer.path + tail in folder.entries:
            return layer.path + tail, folder.entries[layer.path + tail]
    return layer.path + tails[0], None


def _is_reported(folder: Folder, name: str) -> bool:
    """Is the tensor gone because of a broken file, which has its own finding?"""
    return name in folder.lost or not folder.names_known


def _read_gate(router: Router, routing: Routing, folder: Folder) -> None:
    name, entry = router.gate_name, router.gate
    stem = name.removesuffix("weight")
    scales = [stem + tail for tail in _SCALES if stem + tail in folder.entries]
    packed = [stem + tail for tail in _PACKED if stem + tail in folder.entries]
    router.gate_quantized = bool(scales or packed) or (
        entry is not None and entry.dtype not in FLOATS
    )
    if entry is None and packed:
        router.problem(name, f"only {packed[0]}: quantised", _UNQUANTIZED, _KEEP_GATE)
    elif entry is None:
        if not _is_reported(folder, name):
            router.problem(
                name,
                "no such tensor",
                f"a gate weight [{routing.num_experts}, {routing.hidden_size}]",
                "restore it from the original: stock SGLang routes with uninitialised memory",
            )
    elif router.gate_quantized:
        beside = f"with {scales[0].rpartition('.')[2]}" if scales else "without a scale"
        router.problem(name, f"{entry.dtype} {beside}: quantised", _UNQUANTIZED, _KEEP_GATE)
    elif entry.shape != (routing.num_experts, routing.hidden_size):
        router.problem(
            name,
            f"shape {list(entry.shape)}",
            f"[{routing.num_experts}, {routing.hidden_size}], from config.json",
            "use the config.json that belongs to this checkpoint",
        )
    else:
        weight = read_values(entry)
        if not weight.any():
            router.problem(
                name,
                "all values are 0",
                "a trained gate",
                "download the file again: an interrupted download can leave such holes",
            )
        elif _is_finite(router, name, weight):
            router.weight = weight


def _read_bias(router: Router, routing: Routing, folder: Folder, tails: list[str]) -> None:
    name, entry = router.bias_name, router.bias_entry
    path = router.layer.path
    strays = [path + t for t in tails if path + t != name and _STRAY_BIAS.fullmatch(t)]
    if entry is None:
        _report_missing_bias(router, routing, folder, strays)
        return
    for stray in strays:
        router.note(
            stray,
            "a second bias",
            f"only {name}",
            "SGLang does not load it: remove it if it is a copy",
        )
    if not routing.has_bias:
        router.problem(
            name,
            "a correction bias",
            f"none: config.json describes {routing.kind} routing",
            "correct config.json, or SGLang ignores the bias and routes without it",
        )
    if entry.shape != routing.bias_shape:
        router.problem(
            name,
            f"shape {list(entry.shape)}",
            f"{list(routing.bias_shape)}, from config.json",
            "reshape it when saving"
            if prod(entry.shape) == routing.num_experts
            else "use the config.json that belongs to this checkpoint",
        )
    if entry.dtype not in FLOATS:
        router.problem(name, entry.dtype, "F32", "restore it from the original")
    elif prod(entry.shape):
        router.bias = read_values(entry).reshape(-1)
        _is_finite(router, name, router.bias)


def _report_missing_bias(
    router: Router, routing: Routing, folder: Folder, strays: list[str]
) -> None:
    if not routing.has_bias or _is_reported(folder, router.bias_name):
        return
    router.problem(
        router.bias_name,
        f"no such tensor, but {strays[0]}" if strays else "no such tensor",
        f"a correction bias {list(routing.bias_shape)}",
        f"rename {strays[0]}: SGLang does not load that name"
        if strays
        else "restore it from the original: stock SGLang routes with uninitialised memory",
    )


def _is_finite(router: Router, name: str, values: Floats) -> bool:
    finite = np.isfinite(values)
    if finite.all():
        return True
    bad = values[~finite]
    router.problem(
        name,
        f"{bad.size} of {values.size:,} values not finite, the first of them {bad.flat[0]}",
        "finite numbers",
        "restore it from the original: training had diverged, or the conversion is wrong",
    )
    return False
