"""A checkpoint directory: its configuration, its shards, and what is broken about them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sglang_moe_ext.checkpoint.findings import PROBLEM, Finding
from sglang_moe_ext.checkpoint.tensors import BrokenFileError, Entry, Header, read_header

INDEX = "model.safetensors.index.json"
COPY_AGAIN = "copy or download the file again"


@dataclass(slots=True)
class Folder:
    """An opened checkpoint.

    entries: readable tensors by name; the weights of single experts are left out.
    lost: tensors that the index or a header names but no file holds, with the file's name.
    names_known: False if a file that no index describes could not be read.
    """

    path: Path
    config: dict[str, Any] | None = None
    entries: dict[str, Entry] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)
    names_known: bool = True
    files: int = 0
    size_bytes: int = 0
    findings: list[Finding] = field(default_factory=list)

    def problem(self, subject: str, found: str, expected: str, remedy: str) -> None:
        self.findings.append(Finding(None, PROBLEM, subject, found, expected, remedy))


def open_folder(path: Path) -> Folder:
    """Read configuration, index and every header below `path`, a directory or one file."""
    folder = Folder(path)
    if not path.exists():
        folder.problem(
            str(path),
            "no such file or directory",
            "a local checkpoint",
            "download the model first, and pass the directory that holds its config.json",
        )
        return folder
    root = path if path.is_dir() else path.parent
    folder.config = _read_config(root, folder)
    weight_map = _read_index(root, folder) if path.is_dir() else {}
    if weight_map:
        shards: dict[str, set[str]] = {}
        for name, shard in weight_map.items():
            shards.setdefault(shard, set()).add(name)
        for shard, names in sorted(shards.items()):
            _read_shard(root / shard, names, folder)
    else:
        files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
        for file in files:
            _read_shard(file, set(), folder)
        if not files:
            others = sorted(p.name for p in root.glob("*.bin"))[:1] or ["no weights"]
            folder.problem(
                str(root),
                others[0],
                "*.safetensors",
                "convert the checkpoint to safetensors, or pass the directory that holds it",
            )
    return folder


def _read_config(root: Path, folder: Folder) -> dict[str, Any] | None:
    file = root / "config.json"
    try:
        config = json.loads(file.read_bytes())
        if not isinstance(config, dict):
            raise ValueError(f"a {type(config).__name__} at top level")
    except OSError as error:
        found = str(error.strerror)
    except ValueError as error:
        found = f"not a JSON object ({error})"
    else:
        return config
    folder.problem(
        str(file), found, "the model's configuration", "copy config.json from the original"
    )
    return None


def _read_index(root: Path, folder: Folder) -> dict[str, str]:
    file = root / INDEX
    if not file.exists():
        return {}
    try:
        return {str(k): str(v) for k, v in json.loads(file.read_bytes())["weight_map"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        folder.problem(
            INDEX,
            f"unreadable ({type(error).__name__}: {error})",
            "a weight_map of tensor names to files",
            "copy the index again; until then every *.safetensors file is read",
        )
        return {}


def _read_shard(file: Path, indexed: set[str], folder: Folder) -> None:
    """Add one file; `indexed` are the tensors that the index expects in it, if there is one."""
    if file.exists():
        try:
            header = read_header(file)
        except BrokenFileError as error:
            folder.problem(file.name, error.found, error.expected, COPY_AGAIN)
        else:
            _add_tensors(file, header, indexed, folder)
            return
    else:
        folder.problem(
            file.name,
            "no such file",
            f"{len(indexed):,} tensors, according to {INDEX}",
            "download the missing shard",
        )
    folder.lost.update(dict.fromkeys(indexed, file.name))
    folder.names_known = folder.names_known and bool(indexed)


def _add_tensors(file: Path, header: Header, indexed: set[str], folder: Folder) -> None:
    folder.files += 1
    folder.size_bytes += header.size_bytes
    if header.size_bytes < header.promised_bytes:
        folder.problem(
            file.name,
            f"truncated at {header.size_bytes:,} bytes",
            f"{header.promised_bytes:,} bytes, according to its header",
            COPY_AGAIN,
        )
    absent = sorted(indexed - header.entries.keys())
    if absent:
        folder.problem(
            file.name,
            f"{len(absent):,} tensors absent, the first of them {absent[0]}",
            f"what {INDEX} says it holds",
            "index and shards are of different checkpoints: copy both again",
        )
        folder.lost.update(dict.fromkeys(absent, file.name))
    for name, entry in header.entries.items():
        if ".experts." in name and not name.endswith("bias"):
            continue
        if entry.stop > header.size_bytes:
            folder.lost[name] = file.name
        else:
            folder.entries[name] = entry
