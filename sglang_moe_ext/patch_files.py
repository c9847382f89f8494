"""The files of patches/: which of them are for a release, and what each changes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
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
