#!/usr/bin/env python3
"""Fetch SGLang releases from the package registry into a cache, checksums verified.

    python scripts/fetch_releases.py                 every release that scripts/releases.json lists
    python scripts/fetch_releases.py 0.5.9 0.5.16    these
    python scripts/fetch_releases.py --record 0.5.24 a new one: fetch it and write its checksum

A release is unpacked to CACHE/RELEASE, a folder to put on PYTHONPATH; CACHE is
$XDG_CACHE_HOME/sglang-moe-ext/releases, by default below ~/.cache. Wheels are the ones for
Python 3.11 on x86-64 Linux, whatever runs this, so that there is one checksum per release.
pip does the downloading, with whatever index it is configured for.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

RECORDED = Path(__file__).with_name("releases.json")
PLATFORM = ("--python-version=3.11", "--implementation=cp", "--platform=manylinux_2_34_x86_64")


class FetchError(Exception):
    """What was found, what was expected and what to do."""


class DownloadError(FetchError):
    """The registry could not be reached or does not have the release."""


def cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base, "sglang-moe-ext", "releases")


def recorded() -> dict[str, str]:
    """sha256 of each release's wheel."""
    checksums: dict[str, str] = json.loads(RECORDED.read_text(encoding="utf-8"))
    return checksums


def fetch(release: str, cache: Path | None = None) -> Path:
    """The folder that holds `sglang/` of a release, fetched and unpacked if need be.

    Raises FetchError if the release is not recorded, cannot be had, or is not what was recorded.
    """
    cache = cache or cache_folder()
    expected = recorded().get(release)
    if expected is None:
        raise FetchError(
            f"SGLang {release} is not in {RECORDED.name}; "
            f"add it with: python scripts/fetch_releases.py --record {release}"
        )
    folder = cache / release
    wheel = next(cache.glob(f"sglang-{release}-*.whl"), None) or _download(release, cache)
    found = _checksum(wheel)
    if found != expected:
        wheel.unlink()
        shutil.rmtree(folder, ignore_errors=True)
        raise FetchError(
            f"{wheel.name}: sha256 {found}, {RECORDED.name} says {expected}; it was removed, so "
            "fetch it again; if it differs again, the registry's file is not the one recorded"
        )
    if not folder.exists():
        _unpack(wheel, folder)
    return folder


def _download(release: str, cache: Path) -> Path:
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--disable-pip-version-check", "--only-binary=:all:", *PLATFORM]
        done = subprocess.run(
            [*command, "--dest", scratch, f"sglang=={release}"], capture_output=True, text=True
        )
        wheels = list(Path(scratch).glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            raise DownloadError(
                f"pip could not download sglang=={release} (exit {done.returncode}); check the "
                f"network and pip's index:\n{done.stderr.strip()}"
            )
        return wheels[0].rename(cache / wheels[0].name)


def _unpack(wheel: Path, folder: Path) -> None:
    """Unpack under another name first: a folder that is there is complete."""
    scratch = Path(tempfile.mkdtemp(dir=folder.parent))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(scratch)
    scratch.chmod(0o755)
    scratch.rename(folder)


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def record(release: str) -> None:
    """Fetch a release that is not recorded yet and write its checksum down."""
    cache = cache_folder()
    checksums = recorded() | {release: _checksum(_download(release, cache))}
    RECORDED.write_text(json.dumps(checksums, indent=1) + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("releases", nargs="*", metavar="RELEASE")
    parser.add_argument("--record", action="store_true", help="write the checksums of new releases")
    options = parser.parse_args()
    releases = options.releases or list(recorded())
    failed = 0
    for number, release in enumerate(releases, 1):
        print(f"[{number:2}/{len(releases)}] sglang {release}", end=" ", flush=True)
        try:
            if options.record:
                record(release)
            print(fetch(release))
        except FetchError as error:
            failed += 1
            print(f"FAILED: {error}")
    print(f"{len(releases) - failed} of {len(releases)} releases ready in {cache_folder()}")
    return int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
