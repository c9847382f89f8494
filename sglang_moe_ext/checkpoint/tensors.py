"""Safetensors files without the library: headers, and the values of single tensors.

The format (README of huggingface/safetensors): eight bytes, the little-endian length N of a
JSON header, then N bytes of JSON, then the data, to which the header's offsets refer.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

MAX_HEADER_BYTES = 100_000_000  # the library refuses more

Floats = npt.NDArray[np.float32]

_BITS = {"BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "BF16": 16, "C64": 64} | {
    f"{kind}{bits}": bits for kind in "FIU" for bits in (8, 16, 32, 64)
}
_NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "BF16": "<u2"}
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})


class BrokenFileError(ValueError):
    """A file that is not safetensors: `found` and `expected`, in words."""

    def __init__(self, found: str, expected: str) -> None:
        super().__init__(f"{found}, expected {expected}")
        self.found = found
        self.expected = expected


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a tensor lies. start, stop: bytes from the beginning of the file."""

    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says it holds. promised_bytes: its size if it were complete."""

    entries: dict[str, Entry]
    promised_bytes: int
    size_bytes: int


def read_header(file: Path) -> Header:
    """Read the header and nothing else. Raises BrokenFileError."""
    try:
        with file.open("rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(0)
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
                raise BrokenFileError(
                    f"{size:,} bytes, of which the header claims {length:,}",
                    f"a header within the file and below {MAX_HEADER_BYTES:,} bytes",
                )
            raw = stream.read(length)
    except OSError as error:
        raise BrokenFileError(f"unreadable ({error.strerror})", "a readable file") from error
    try:
        table = json.loads(raw)
        entries = {
            name: _entry(name, fields, file, 8 + length)
            for name, fields in table.items()
            if name != "__metadata__"
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BrokenFileError(
            f"a header that cannot be read ({error})", "JSON with dtype, shape, data_offsets"
        ) from error
    return Header(entries, max((e.stop for e in entries.values()), default=8 + length), size)


def _entry(name: str, fields: dict[str, Any], file: Path, data: int) -> Entry:
    dtype, shape = str(fields["dtype"]), tuple(int(n) for n in fields["shape"])
    start, stop = fields["data_offsets"]
    bits = _BITS.get(dtype.partition("_")[0] if dtype.startswith("F8_") else dtype)
    if (
        min(shape, default=0) < 0
        or not 0 <= start <= stop
        or (bits and (stop - start) * 8 != bits * prod(shape))
    ):
        raise ValueError(f"{name}: {dtype} {list(shape)} in bytes {start}..{stop}")
    return Entry(dtype, shape, file, data + start, data + stop)


def can_decode(entry: Entry) -> bool:
    return entry.dtype in _NUMPY


def read_values(entry: Entry) -> Floats:
    """The tensor as float32, exactly unless it is F64 or an integer."""
    raw = np.fromfile(
        entry.file, dtype=_NUMPY[entry.dtype], count=prod(entry.shape), offset=entry.start
    ).reshape(entry.shape)
    if entry.dtype == "BF16":
        return (raw.astype("<u4") << 16).view(np.float32)
    return raw.astype(np.float32, copy=False)
