"""Change several files of one folder tree, so that a crash leaves the old or the new tree.

Guaranteed, on a local POSIX file system:
- Every new text is written and synced beside its target before the first target changes.
- A journal in the root lists all changes. Until it says "committed", `recover` removes the
  texts beside and the tree is the old one; from then on `recover` finishes and it is the new one.
- Each target changes by one rename, so a reader sees the old or the new file, never a part.
  Renaming also leaves hard links (package caches) to the old file alone.
- Files appear before the ones that may need them change, and disappear after: also between
  a crash and `recover` nothing imports what isn't there.
- A target that is neither the old nor the new text at recovery is somebody's edit: `recover`
  raises and touches nothing.
Not guaranteed: anything about readers that open several files while renames are going on.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

JOURNAL = ".sglang-moe-ext-journal.json"
BESIDE = ".sglang-moe-ext-new"


class TransactionError(Exception):
    """What was found in the tree and what to do about it."""


@contextmanager
def exclusive(root: Path) -> Iterator[None]:
    """Hold the tree against other processes that use this module."""
    handle = os.open(root, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise TransactionError(f"{root} is being patched by another process; wait for it") from None
    else:
        yield
    finally:
        os.close(handle)


def commit(root: Path, changes: Mapping[str, bytes | None]) -> None:
    """Give the files named in `changes` (relative to `root`) these contents; None removes.

    Call `recover` first, and hold `exclusive`. Raises OSError; `recover` then takes back or
    finishes, as after a crash.
    """
    entries = [_entry(root, path, after) for path, after in changes.items()]
    entries.sort(key=lambda entry: (entry["after"] is None, entry["before"] is not None))
    _write_journal(root, "staging", entries)
    for entry in entries:
        after = changes[entry["path"]]
        if after is not None:
            _stage(root / entry["path"], after)
    _write_journal(root, "committed", entries)
    _finish(root, entries)


def recover(root: Path) -> str | None:
    """Bring a tree that a crash left behind to the old or the new state.

    Returns "old", "new", or None if there was nothing to do. Call it while `exclusive`.
    """
    journal = root / JOURNAL
    _beside(journal).unlink(missing_ok=True)
    if not journal.exists():
        return None
    record = json.loads(journal.read_text(encoding="utf-8"))
    if record["phase"] == "committed":
        _check(root, record["files"])
        _finish(root, record["files"])
        return "new"
    for entry in record["files"]:
        _beside(root / entry["path"]).unlink(missing_ok=True)
        _remove_empty(root, entry["folders"])
    _remove_journal(root)
    return "old"


def _entry(root: Path, path: str, after: bytes | None) -> dict[str, Any]:
    target = root / path
    if target.is_symlink():
        raise TransactionError(f"{target} is a symbolic link; run this on the tree it points into")
    parents = [
        parent for parent in target.relative_to(root).parents if not (root / parent).exists()
    ]
    return {
        "path": path,
        "before": _digest(target.read_bytes()) if target.exists() else None,
        "after": None if after is None else _digest(after),
        "folders": [str(parent) for parent in parents],
    }


def _stage(target: Path, content: bytes) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    _write_synced(_beside(target), content)
    if target.exists():
        shutil.copymode(target, _beside(target))


def _finish(root: Path, entries: list[dict[str, Any]]) -> None:
    for entry in entries:
        target = root / entry["path"]
        if entry["after"] is None:
            target.unlink(missing_ok=True)
            _remove_leftovers(root, target)
        elif _beside(target).exists():
            os.replace(_beside(target), target)
            _sync_folder(target.parent)
    _remove_journal(root)


def _check(root: Path, entries: list[dict[str, Any]]) -> None:
    for entry in entries:
        target = root / entry["path"]
        found = _digest(target.read_bytes()) if target.exists() else None
        pending = entry["after"] is None or _beside(target).exists()
        if found != entry["after"] and not (pending and found == entry["before"]):
            raise TransactionError(
                f"{target} was edited after an interrupted run; expected the text from before or "
                f"after it. Save your edit, reinstall SGLang or check the file out again, and "
                f"delete {root / JOURNAL} and any *{BESIDE} beside the patched files"
            )


def _remove_leftovers(root: Path, target: Path) -> None:
    """Compiled files of a removed module and folders it leaves empty: both are importable."""
    for compiled in target.parent.glob(f"__pycache__/{target.stem}.*.pyc"):
        compiled.unlink(missing_ok=True)
    folders = [target.parent / "__pycache__", target.parent]
    _remove_empty(root, [str(folder.relative_to(root)) for folder in folders])


def _remove_empty(root: Path, folders: list[str]) -> None:
    """Remove those folders (innermost first) that exist and are empty."""
    for folder in folders:
        path = root / folder
        if path != root and path.is_dir() and not any(path.iterdir()):
            path.rmdir()


def _write_journal(root: Path, phase: str, entries: list[dict[str, Any]]) -> None:
    text = json.dumps({"phase": phase, "files": entries}, indent=1)
    _write_synced(_beside(root / JOURNAL), text.encode())
    os.replace(_beside(root / JOURNAL), root / JOURNAL)
    _sync_folder(root)


def _remove_journal(root: Path) -> None:
    (root / JOURNAL).unlink()
    _sync_folder(root)


def _beside(target: Path) -> Path:
    return target.with_name(target.name + BESIDE)


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
