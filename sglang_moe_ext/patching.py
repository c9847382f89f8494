"""Unified diffs against SGLang: found by release, fitted exactly or not at all.

A hunk fits where its lines (context and old side) stand together at exactly one place of the
file: no fuzz, and the line numbers are for people. So one diff serves every release whose
text around the change is the same, and an edited or unknown file is a conflict, not a guess.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import NamedTuple

PREFIXES = ("a/python/sglang/", "b/python/sglang/")  # as `git diff` writes them in a checkout
# In an installed package the patches lie in it, in a checkout beside it.
FOLDER = next(
    folder
    for folder in (Path(__file__).with_name("patches"), Path(__file__).parents[1] / "patches")
    if folder.is_dir() or folder.parent != Path(__file__).parent
)
HEADER_KEYS = ("Base", "Series", "Purpose", "Upstream", "Remove-when")


class PatchError(Exception):
    """What was found, what was expected and what to do."""


class Release(NamedTuple):
    """An SGLang release; `post` is -1 for a release without one, so releases sort as published."""

    major: int
    minor: int
    micro: int
    post: int = -1

    @classmethod
    def parse(cls, text: str) -> Release:
        """Read "0.5.9" or "0.5.10.post1"; a local part ("+xpu") is dropped.

        Raises PatchError for anything else, development versions included.
        """
        match = re.fullmatch(r"(\d+)\.(\d+)\.(\d+)(?:\.post(\d+))?(?:\+[\w.]+)?", text)
        if match is None:
            raise PatchError(
                f"SGLang {text!r} is not a release such as 0.5.9 or 0.5.10.post1; "
                "name the nearest one with --release (a patch that does not fit is refused)"
            )
        major, minor, micro, post = match.groups()
        return cls(int(major), int(minor), int(micro), -1 if post is None else int(post))

    def __str__(self) -> str:
        post = "" if self.post < 0 else f".post{self.post}"
        return f"{self.major}.{self.minor}.{self.micro}{post}"


class State(Enum):
    APPLIED = "applied"
    NOT_APPLIED = "not applied"
    CONFLICT = "conflict"


@dataclass(frozen=True)
class Hunk:
    """Lines with their ends; `line` is where the old side began in the base release."""

    line: int
    old: tuple[str, ...]
    new: tuple[str, ...]


@dataclass(frozen=True)
class FileDiff:
    """Changes of one file, its path relative to the package; `creates` if there is no old side."""

    path: str
    creates: bool
    hunks: tuple[Hunk, ...]


@dataclass(frozen=True)
class Patch:
    """One file of patches/.

    name: "<release range>/NNNN-name.patch". header: HEADER_KEYS to one-line texts.
    """

    name: str
    header: dict[str, str]
    files: tuple[FileDiff, ...]


class MisfitError(Exception):
    """Why a file diff does not fit a text."""


def find_patches(folder: Path, release: Release) -> list[Patch]:
    """The patches for `release`, in the order in which they apply."""
    ranges = [each for each in folder.iterdir() if each.is_dir()]
    paths = [path for each in ranges if _covers(each.name, release) for path in each.iterdir()]
    patches = [parse(path) for path in paths if path.suffix == ".patch"]
    return sorted(patches, key=lambda patch: Path(patch.name).name)


def _covers(name: str, release: Release) -> bool:
    """Is `release` in the folder's range? "0.5.3-0.5.9" and "0.5.10" include their posts."""
    first, _, last = name.partition("-")
    low, high = Release.parse(first), Release.parse(last or first)
    a_post_of_high = high.post < 0 and release[:3] == high[:3]
    return low <= release and (release <= high or a_post_of_high)


def parse(path: Path) -> Patch:
    """Read one patch file. Raises PatchError if it is not one of ours."""
    name = f"{path.parent.name}/{path.name}"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    first = next((i for i, line in enumerate(lines) if line.startswith("--- ")), len(lines))
    header = _parse_header(lines[:first])
    if missing := [key for key in HEADER_KEYS if not header.get(key)]:
        raise PatchError(f"{name}: header lacks {', '.join(missing)}; expected {HEADER_KEYS}")
    files = []
    while first < len(lines):
        try:
            diff, first = _parse_file(lines, first)
        except (ValueError, IndexError) as error:
            raise PatchError(
                f"{name}: not a unified diff near line {first + 1}: {error}"
            ) from error
        files.append(diff)
    return Patch(name, header, tuple(files))


def _parse_header(lines: Sequence[str]) -> dict[str, str]:
    header: dict[str, str] = {}
    key = ""
    for line in lines:
        if match := re.match(r"([A-Z][\w-]*): (.*)", line):
            key = match[1]
            header[key] = match[2].strip()
        elif key and line.startswith(" "):
            header[key] += " " + line.strip()
    return header


def _parse_file(lines: Sequence[str], at: int) -> tuple[FileDiff, int]:
    old, new = lines[at].removeprefix("--- ").strip(), lines[at + 1].removeprefix("+++ ").strip()
    if not lines[at + 1].startswith("+++ ") or not new.startswith(PREFIXES[1]):
        raise ValueError(f"found {lines[at + 1].strip()!r}, expected '+++ {PREFIXES[1]}...'")
    creates = old == "/dev/null"
    path = new.removeprefix(PREFIXES[1])
    if not creates and old != PREFIXES[0] + path:
        raise ValueError(f"found {old!r}, expected {PREFIXES[0] + path!r}")
    at += 2
    hunks = []
    while at < len(lines) and lines[at].startswith("@@"):
        hunk, at = _parse_hunk(lines, at)
        hunks.append(hunk)
    return FileDiff(path, creates, tuple(hunks)), at


def _parse_hunk(lines: Sequence[str], at: int) -> tuple[Hunk, int]:
    match = re.match(r"@@ -(\d+)(?:,(\d+))? \+\d+(?:,(\d+))? @@", lines[at])
    if match is None:
        raise ValueError(f"bad hunk head {lines[at].strip()!r}")
    left = [1 if count is None else int(count) for count in match.groups()[1:]]
    old: list[str] = []
    new: list[str] = []
    while left != [0, 0]:
        at += 1
        mark, text = lines[at][0], lines[at][1:]
        if mark not in " +-":
            raise ValueError(f"found {lines[at].strip()!r}, expected a line of the hunk")
        if mark != "+":
            old.append(text)
            left[0] -= 1
        if mark != "-":
            new.append(text)
            left[1] -= 1
    return Hunk(int(match[1]), tuple(old), tuple(new)), at + 1


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
