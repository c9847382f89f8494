#!/usr/bin/env python3
"""Run Python with an older SGLang release in front of the installed one.

    python scripts/release_environment.py            how far every release imports here
    python scripts/release_environment.py 0.5.9      this one

The release and the transformers that it pins (with the huggingface_hub and tokenizers which
that one asks for) come first on the path; everything else, torch included, is what is
installed. So this tells about SGLang's Python code, not about the release as it shipped.
"""

from __future__ import annotations

import argparse
import email
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import fetch_releases

STAND_INS = Path(__file__).resolve().parents[1] / "test/releases/stand_ins"
# What must import for a level, besides all that the levels before it need.
LEVELS = {
    "router": "sglang.srt.layers.moe.topk",
    "model": "sglang.srt.models.deepseek_v2",
    "server": "sglang.srt.entrypoints.http_server",
}
PROBE = """
import importlib, json, sys
errors = {}
for module in json.loads(sys.argv[1]):
    try:
        importlib.import_module(module)
    except BaseException as error:
        text = str(error).strip().splitlines() or [""]
        errors[module] = f"{type(error).__name__}: {text[-1]}"
print("PROBED", json.dumps(errors))
"""


@dataclass(frozen=True)
class ImportLevel:
    """How far a release imports.

    level: the highest key of LEVELS, or "lifted" if not even the router imports, so that
        functions can only be lifted out of the source.
    stand_ins: whether that took the stand-ins for sgl_kernel and vllm.
    errors: by module, why it does not import.
    """

    level: str
    stand_ins: bool
    errors: dict[str, str]


def run(
    release: str,
    code: str,
    *arguments: str,
    stand_ins: bool,
    package: Path | None = None,
    environment: Mapping[str, str] | None = None,
    timeout_s: float = 600,
) -> subprocess.CompletedProcess[str]:
    """Run `python -c code arguments` with a release in front, in an empty folder.

    package: a changed copy of the folder that holds the release's `sglang`.
    environment: further variables.
    """
    paths = [package or fetch_releases.fetch(release), *pinned(release)]
    variables = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, [STAND_INS] * stand_ins + paths)),
        "PYTHONWARNINGS": "ignore",
        # Not the CPU platform of the tests, which SGLang would select by itself: it needs 0.5.14.
        "SGLANG_PLUGINS": "moe_ext",
        **(environment or {}),
    }
    with tempfile.TemporaryDirectory() as folder:
        return subprocess.run(
            [sys.executable, "-c", code, *arguments],
            env=variables,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )


def import_level(release: str) -> ImportLevel:
    """The highest level, first without and, if that is not all, with the stand-ins."""
    found = _probe(release, stand_ins=False)
    return _probe(release, stand_ins=True) if found.errors else found


def _probe(release: str, *, stand_ins: bool) -> ImportLevel:
    modules = list(LEVELS.values())
    done = run(release, PROBE, json.dumps(modules), stand_ins=stand_ins)
    if "PROBED " in done.stdout:
        errors = json.loads(done.stdout.rpartition("PROBED ")[2])
    else:
        errors = dict.fromkeys(modules, f"exit {done.returncode}: {done.stderr[-300:].strip()}")
    reached = list(takewhile(lambda level: LEVELS[level] not in errors, LEVELS))
    return ImportLevel(reached[-1] if reached else "lifted", stand_ins, errors)


def pinned(release: str) -> list[Path]:
    """A folder with the transformers that a release pins, or nothing if that is installed."""
    folder = fetch_releases.fetch(release)
    pins = _requirements(folder, "sglang")
    version = pins["transformers"].removeprefix("==")
    if version == importlib.metadata.version("transformers"):
        return []
    target = fetch_releases.cache_folder().parent / f"transformers-{version}"
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            _install(Path(scratch), f"transformers=={version}")
            wanted = _requirements(Path(scratch), "transformers")
            names = ("huggingface-hub", "tokenizers")
            _install(Path(scratch), *(name + wanted[name] for name in names))
            Path(scratch, "installed").mkdir()
            for entry in list(Path(scratch).iterdir()):
                if entry.name != "installed":
                    entry.rename(Path(scratch, "installed", entry.name))
            Path(scratch, "installed").rename(target)
    return [target]


def _requirements(folder: Path, distribution: str) -> dict[str, str]:
    """The first version specifier of each requirement, by name; 0.5.2 has them all in extras."""
    (metadata,) = folder.glob(f"{distribution}-*.dist-info/METADATA")
    specifiers: dict[str, str] = {}
    message = email.message_from_string(metadata.read_text("utf-8"))
    for requirement in message.get_all("Requires-Dist", []):
        name, specifier = re.fullmatch(
            r"([\w.-]+)(?:\[.*\])? ?([^;]*)(?:;.*)?", requirement
        ).groups()
        specifiers.setdefault(name, specifier.strip(" ()"))
    return specifiers


def _install(target: Path, *requirements: str) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", f"--target={target}", *requirements]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise fetch_releases.DownloadError(
            f"pip could not install {', '.join(requirements)}; check the network and pip's "
            f"index:\n{done.stderr.strip()}"
        )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("releases", nargs="*", metavar="RELEASE")
    options = parser.parse_args()
    for release in options.releases or list(fetch_releases.recorded()):
        found = import_level(release)
        note = " with stand-ins" if found.stand_ins else ""
        print(f"{release:13} {found.level}{note}", *found.errors.items(), sep="\n    ", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
