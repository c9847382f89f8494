#!/usr/bin/env python3
"""Apply this repository's patches to an SGLang source tree or installed package.

    python scripts/apply_patches.py --root PATH             what is applied and what would fit
    python scripts/apply_patches.py --root PATH --apply     apply all that are not applied yet
    python scripts/apply_patches.py --root PATH --revert    take them back, byte for byte

PATH is a checkout, an installed `sglang` folder, or the folder that contains it. Series:
plugin (loads plugins in releases without a plugin system), xpu (the router kernel on Intel
GPUs, for those who do not use the plugin) and ci (the `register_xpu_ci` marker).

All or nothing: with one conflict no file is touched. A patch that is applied already is left
alone. Edits of yours elsewhere in a file stay; edits where a patch wants to go are a conflict.
A run that was killed midway is finished or taken back by the next one, whatever it was asked
to do but --list; `sglang_moe_ext/transaction.py` says what is guaranteed. Only Python's
standard library is used.

Exit code: 0 all patches are in the state asked for (applied, for --check), 1 some are not
applied (--check), 2 a conflict or an error.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from sglang_moe_ext import transaction  # noqa: E402
from sglang_moe_ext.patch_files import FOLDER, Patch, PatchError, Release, find_patches  # noqa: E402
from sglang_moe_ext.patching import State, Step, plan, reader  # noqa: E402

SERIES = ("plugin", "xpu", "ci")


def find_package(root: Path) -> Path:
    """The `sglang` folder under `root`. Raises PatchError naming the places looked at."""
    places = [root / "python" / "sglang", root / "sglang", root]
    for place in places:
        if (place / "srt").is_dir() and (place / "launch_server.py").is_file():
            return place.resolve()
    looked = ", ".join(str(place) for place in places)
    raise PatchError(f"no SGLang found (srt/ and launch_server.py in {looked}); check --root")


def find_release(package: Path) -> tuple[str, str]:
    """The release of `package` and where it is written down.

    Raises PatchError if it is written nowhere.
    """
    written = r"^__version__ = (?:version = )?['\"]([^'\"]+)['\"]"
    candidates = [
        (package / "_version.py", written),
        (package / "version.py", written),
        *(
            (path, r"^Version: (\S+)")
            for path in package.parent.glob("sglang-*.dist-info/METADATA")
        ),
        (package.parent / "pyproject.toml", r"^version = \"([^\"]+)\""),
    ]
    for path, pattern in candidates:
        if path.is_file() and (match := re.search(pattern, path.read_text("utf-8"), re.MULTILINE)):
            return match[1], str(path.relative_to(package.parent))
    if tag := _checked_out_tag(package.parents[1] / ".git"):
        return tag.removeprefix("v"), f"git tag {tag}"
    looked = ", ".join(str(path) for path, _ in candidates)
    raise PatchError(f"no version in {looked}, no git tag checked out; say --release X")


def _checked_out_tag(git: Path) -> str | None:
    """The version tag that .git's HEAD stands on: releases since 0.5.7 compute their version."""
    head = git / "HEAD"
    if not head.is_file():
        return None
    commit = head.read_text("utf-8").strip()
    if commit.startswith("ref: "):
        branch = git / commit.removeprefix("ref: ")
        commit = branch.read_text("utf-8").strip() if branch.is_file() else ""
    tags = {path.name: path.read_text("utf-8").strip() for path in git.glob("refs/tags/v*")}
    packed = git / "packed-refs"
    tag = ""
    for line in packed.read_text("utf-8").splitlines() if packed.is_file() else []:
        if match := re.match(r"(\w+) refs/tags/(v.+)", line):
            tag = match[2]
            tags.setdefault(tag, match[1])
        elif line.startswith("^"):  # the commit of the annotated tag above
            tags[tag] = line[1:]
    return next((tag for tag, commit_of_tag in tags.items() if commit_of_tag == commit), None)


def list_patches(patches: list[Patch]) -> None:
    for patch in patches:
        print(f"{patch.name}")
        for key, value in patch.header.items():
            print(f"    {key}: {value}")
        for diff in patch.files:
            print(f"    {'new ' if diff.creates else 'edits '}{diff.path}")


def report(steps: list[Step]) -> None:
    for step in steps:
        print(f"{step.state.value:12} {step.patch.name}" + (f": {step.reason}" * bool(step.reason)))


def change(package: Path, patches: list[Patch], *, revert: bool) -> list[Step]:
    """Apply or revert; returns what was found before. Raises PatchError on a conflict."""
    steps, texts = plan(patches, reader(package), reverse=revert)
    conflicts = [step for step in steps if step.state is State.CONFLICT]
    if conflicts:
        report(steps)
        raise PatchError(
            f"{len(conflicts)} of {len(steps)} patches conflict, so nothing was changed: the files "
            "are edited, partly patched, or of another release; restore them or see --release"
        )
    contents = {path: text if text is None else text.encode() for path, text in texts.items()}
    if contents:
        try:
            transaction.commit(package, contents)
        except OSError as error:
            state = transaction.recover(package) or "old"
            raise PatchError(f"{error}; the {state} files are in place") from error
    return steps


def run(options: argparse.Namespace) -> int:
    package = find_package(options.root)
    text, source = (options.release, "--release") if options.release else find_release(package)
    print(f"SGLang {text} (from {source}) in {package}")
    patches = find_patches(FOLDER, Release.parse(text))
    if options.series:
        patches = [patch for patch in patches if patch.header["Series"] in options.series]
    if not patches:
        print(f"no patch for this release in series {', '.join(options.series or SERIES)}")
        return 0
    if options.list:
        list_patches(patches)
        return 0
    with transaction.exclusive(package):
        if state := transaction.recover(package):
            print(f"an interrupted run was found: the {state} files are in place now")
        if not (options.apply or options.revert):
            steps, _ = plan(patches, reader(package))
            report(steps)
            found = {step.state for step in steps}
            return 2 if State.CONFLICT in found else int(State.NOT_APPLIED in found)
        steps = change(package, patches, revert=options.revert)
    done, todo = ("reverted", State.APPLIED) if options.revert else ("applied", State.NOT_APPLIED)
    for step in steps:
        word = f"{done} now" if step.state is todo else f"{step.state.value} already"
        print(f"{word:20} {step.patch.name}")
    if any(step.state is todo for step in steps):
        print(f"undo: {_command(options, text, '--apply' if options.revert else '--revert')}")
    return 0


def _command(options: argparse.Namespace, release: str, action: str) -> str:
    words = ["python", sys.argv[0], "--root", str(options.root), "--release", release]
    words += [word for name in options.series or () for word in ("--series", name)]
    return shlex.join([*words, action])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, required=True, help="checkout or installed package")
    parser.add_argument("--release", help="SGLang release, where the tree does not say")
    parser.add_argument("--series", action="append", choices=SERIES, help="default: all")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--list", action="store_true", help="the patches for this release")
    action.add_argument("--check", action="store_true", help="the state of each (the default)")
    action.add_argument("--apply", action="store_true")
    action.add_argument("--revert", action="store_true")
    options = parser.parse_args(arguments)
    try:
        return run(options)
    except (PatchError, transaction.TransactionError) as error:
        print(f"error: {error}", file=sys.stderr)
    except OSError as error:
        print(
            f"error: {error}; mend the cause and run this again: it first finishes or takes back "
            "what was begun",
            file=sys.stderr,
        )
    return 2


if __name__ == "__main__":
    raise SystemExit(main())
