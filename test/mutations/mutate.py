#!/usr/bin/env python3
"""Take each guard of the code away in turn, and see whether a test notices.

    python test/mutations/mutate.py                   # all of them: about an hour on two cores
    python test/mutations/mutate.py --only ops/cpu gate.py
    python test/mutations/mutate.py --list

guards.toml names, per file of the package, the tests that are to notice and each guard as the
text to find and the text to put there. The files are changed where they lie, since the tests
start processes that import what is installed, and are put back whatever happens; a file with
changes that are not committed is refused. First the tests must pass as they are: a test that
fails anyway notices nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import tomllib

ROOT = Path(__file__).resolve().parents[2]
TABLE = Path(__file__).with_name("guards.toml")
TIMEOUT_S = 300  # of one test: a guard against endless loops is caught by it


@dataclass(frozen=True)
class Guard:
    """name: what it guards. old: its text, once in `file`. new: the text without it.

    tests: pytest arguments, run until the first failure.
    """

    file: str
    name: str
    old: str
    new: str
    tests: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.file.removeprefix('sglang_moe_ext/')}: {self.name}"


@dataclass(frozen=True)
class Verdict:
    """by: the first test that failed, or why there is no verdict."""

    guard: str
    outcome: str  # caught, SURVIVED or BROKEN
    by: str
    seconds: float


def read_guards() -> Iterator[Guard]:
    """Raises ValueError for a guard whose text is not in its file exactly once."""
    for file, section in tomllib.loads(TABLE.read_text(encoding="utf-8")).items():
        text = (ROOT / file).read_text(encoding="utf-8")
        for name, (old, new, *tests) in section["guards"].items():
            if text.count(old) != 1 or old == new:
                raise ValueError(f"{file}: {name}: {old!r} is there {text.count(old)} times, not 1")
            yield Guard(file, name, old, new, tuple(tests or section["tests"]))


def main() -> int:
    summary, _, details = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", nargs="+", default=[""], metavar="FILE", help="beginnings of names in --list"
    )
    parser.add_argument(
        "--part", default="1/1", metavar="I/N", help="every N-th guard, for N copies of the tree"
    )
    parser.add_argument("--list", action="store_true", help="print the guards and leave")
    parser.add_argument("--out", type=Path, help="JSON file to write the verdicts to")
    parser.add_argument("--no-baseline", action="store_true", help="trust that the tests pass")
    options = parser.parse_args()
    guards = [guard for guard in read_guards() if str(guard).startswith(tuple(options.only))]
    if not guards:
        parser.error(f"found no guard of {' or '.join(options.only)}; --list shows them all")
    part, parts = map(int, options.part.split("/"))
    guards = guards[part - 1 :: parts]
    if options.list:
        print(*guards, f"{len(guards)} guards", sep="\n")
        return 0
    if not options.no_baseline:
        for tests in dict.fromkeys(guard.tests for guard in guards):
            print(f"as it is: {' '.join(tests)}", flush=True)
            code, output = _run(tests)
            if code:
                print(output[-3000:])
                return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # files are put back on the way out
    verdicts = []
    for number, guard in enumerate(guards, 1):
        verdicts.append(_try(guard))
        verdict = verdicts[-1]
        print(
            f"[{number}/{len(guards)}] {verdict.outcome:8} {verdict.seconds:5.0f} s  "
            f"{verdict.guard}  <-  {verdict.by}",
            flush=True,
        )
        if options.out:
            options.out.write_text(json.dumps([asdict(each) for each in verdicts], indent=1) + "\n")
    caught = sum(verdict.outcome == "caught" for verdict in verdicts)
    print(f"{caught} of {len(guards)} guards: a test fails without them")
    return int(caught != len(guards))


def _try(guard: Guard) -> Verdict:
    started = time.monotonic()
    with _without(guard):
        code, output = _run(guard.tests)
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", output, re.MULTILINE)
    if code == 0:
        outcome, by = "SURVIVED", f"nothing in {' '.join(guard.tests)}"
    elif failed and code == 1:
        outcome, by = "caught", failed[1].removeprefix("test/registered/")
    elif code < 0 or "Timeout" in output:
        outcome, by = "caught", f"the process ended with {code}"
    else:
        outcome, by = "BROKEN", f"pytest ended with {code}: {output[-300:]!r}"
    return Verdict(str(guard), outcome, by, round(time.monotonic() - started, 1))


@contextmanager
def _without(guard: Guard) -> Iterator[None]:
    path = ROOT / guard.file
    if subprocess.run(["git", "diff", "--quiet", "HEAD", "--", path], cwd=ROOT).returncode:
        sys.exit(f"{guard.file} has changes that are not committed; commit or stash them")
    before, stamp = path.read_bytes(), path.stat()
    try:
        path.write_text(before.decode().replace(guard.old, guard.new), encoding="utf-8")
        yield
    finally:
        path.write_bytes(before)
        os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))


def _run(tests: tuple[str, ...]) -> tuple[int, str]:
    options = ["-x", "-q", "-p", "no:cacheprovider", f"--timeout={TIMEOUT_S}"]
    with tempfile.TemporaryDirectory() as compiled:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *options, *tests],
            cwd=ROOT,
            # Nothing compiled from a mutated source may outlive it.
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "NUMBA_CACHE_DIR": compiled},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    return done.returncode, done.stdout


if __name__ == "__main__":
    raise SystemExit(main())
