"""Run Python with an older SGLang release in front of the installed one.

The release and the transformers that it pins (with the huggingface_hub and tokenizers which
that one asks for) come first on the path; everything else, torch included, is what is
installed. So this tells about SGLang's Python code, not about the release as it shipped.
"""

from __future__ import annotations

import email
import importlib.metadata
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import fetch_releases

STAND_INS = Path(__file__).resolve().parents[1] / "test/releases/stand_ins"


def run(
    release: str,
    script: Path,
    *arguments: str,
    stand_ins: bool,
    package: Path | None = None,
    environment: Mapping[str, str] | None = None,
    timeout_s: float = 600,
) -> subprocess.CompletedProcess[str]:
    """Run `python script arguments` with a release in front, in an empty folder.

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
            [sys.executable, script, *arguments],
            env=variables,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )


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
