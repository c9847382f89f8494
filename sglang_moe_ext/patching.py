"""Applying and taking back unified diffs, exactly or not at all.

A hunk fits where its lines (context and old side) stand together at exactly one place of the
file: no fuzz, and the line numbers are for people. So one diff serves every release whose
text around the change is the same, and an edited or unknown file is a conflict, not a guess.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from sglang_moe_ext.patch_files import FileDiff, Patch


class State(Enum):
    APPLIED = "applied"
    NOT_APPLIED = "not applied"
    CONFLICT = "conflict"


class MisfitError(Exception):
    """Why a file diff does not fit a text."""


def rewrite(diff: FileDiff, text: str | None, *, reverse: bool = False) -> str | None:
    """The text of a file with `diff` applied or, in reverse, taken back; None is no file.

    Raises MisfitError with the reason.
    """
    if diff.creates:
        created = "".join(line for hunk in diff.hunks for line in hunk.new)
        before, after = (created, None) if reverse else (None, created)
        if text == before:
            return after
        raise MisfitError(f"{diff.path} " + ("exists already" if before is None else "was edited"))
    if text is None:
        raise MisfitError(f"{diff.path} does not exist")
    lines = text.splitlines(keepends=True)
    placed = []
    for hunk in diff.hunks:
        old, new = (hunk.new, hunk.old) if reverse else (hunk.old, hunk.new)
        places = [i for i in range(len(lines)) if tuple(lines[i : i + len(old)]) == old]
        if len(places) != 1:
            found = f"at lines {[i + 1 for i in places]}" if places else "nowhere"
            raise MisfitError(f"{diff.path}: the lines around {hunk.line} are found {found}")
        placed.append((places[0], len(old), new))
    for place, length, new in sorted(placed, reverse=True):
        lines[place : place + length] = new
    return "".join(lines)


def reader(package: Path) -> Callable[[str], str | None]:
    """Reads files of an installed `sglang` folder by their path in it; None is no file."""

    def read(path: str) -> str | None:
        file = package / path
        return file.read_bytes().decode("utf-8") if file.exists() else None

    return read


@dataclass(frozen=True)
class Step:
    """One patch as found; `reason` says why it conflicts."""

    patch: Patch
    state: State
    reason: str = ""


def plan(
    patches: Sequence[Patch], read: Callable[[str], str | None], *, reverse: bool = False
) -> tuple[list[Step], dict[str, str | None]]:
    """What is found of each patch, and the files as they should become.

    patches: in the order in which they apply. read: text of a file or None.
    reverse: take back instead of apply.
    Returns the steps in the order of `patches` and new texts by path (None: no file). Each
    patch is judged on the result of those before it; a conflicting one changes nothing.
    """
    texts: dict[str, str | None] = {}

    def current(path: str) -> str | None:
        return texts[path] if path in texts else read(path)

    def tried(patch: Patch, backwards: bool) -> dict[str, str | None]:
        return {d.path: rewrite(d, current(d.path), reverse=backwards) for d in patch.files}

    steps = []
    for patch in reversed(patches) if reverse else patches:
        outcome: dict[State, dict[str, str | None]] = {}
        reasons = []
        for state, backwards in ((State.NOT_APPLIED, False), (State.APPLIED, True)):
            try:
                outcome[state] = tried(patch, backwards)
            except MisfitError as misfit:
                reasons.append(str(misfit))
        if len(outcome) == 1:
            state, rewritten = outcome.popitem()
            steps.append(Step(patch, state))
            if (state is State.APPLIED) is reverse:
                texts.update(rewritten)
        else:
            why = "fits forwards and backwards" if outcome else "; ".join(dict.fromkeys(reasons))
            steps.append(Step(patch, State.CONFLICT, why))
    return steps[::-1] if reverse else steps, texts
