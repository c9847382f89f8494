#!/usr/bin/env python3
"""Write the README's table of releases from what `test/releases/compatibility.py` found.

    python scripts/release_table.py            from test/releases/results.json
    python scripts/release_table.py --check    exit 1 if the README has another table

Consecutive releases with the same row share one.
"""

from __future__ import annotations

import argparse
import json
from itertools import groupby
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
RESULTS = ROOT / "test/releases/results.json"
START, END = "<!-- releases -->\n", "<!-- /releases -->"
HEADER = (
    "SGLang",
    "loaded by",
    "imports, on a CPU",
    "overrides live",
    "routing",
    "padding, remapping",
    "gate",
    "patches",
)
FINISHED_BY = {"router": "in our router", "us": "restored", "sglang": "SGLang's own"}


def table(results: dict[str, dict[str, Any]]) -> str:
    """results: per release, oldest first, as `compatibility.summary` makes them."""
    lines = [HEADER, ("---",) * len(HEADER)]
    for cells, group in groupby(results, key=lambda release: row(results[release])):
        releases = list(group)
        name = releases[0] if len(releases) == 1 else f"{releases[0]} … {releases[-1]}"
        lines.append((name, *cells))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def row(result: dict[str, Any]) -> tuple[str, ...]:
    """The cells of one release, all but its name."""
    routing = [sum(pair) for pair in zip(result["cases"], result["sweep"], strict=True)]
    return (
        result["via"],
        result["level"] + ", with stand-ins" * result["stand_ins"],
        "yes" if result["live"] else "no",
        share(routing),
        f"{share(result['ids'])}, {FINISHED_BY[result['ids_finished_by']]}",
        share(result["gate"]),
        "round trip" if result["patches"] else "FAILED",
    )


def share(counts: list[int]) -> str:
    passed, total = counts
    return f"{passed} of {total}"


def written(readme: str, results: dict[str, dict[str, Any]]) -> str:
    """`readme` with the table of `results` between its markers."""
    before, _, rest = readme.partition(START)
    _, _, after = rest.partition(END)
    if not after:
        raise SystemExit(f"{README.name} lacks {START.strip()} ... {END}; put them back")
    return before + START + table(results) + END + after


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args()
    readme = README.read_text(encoding="utf-8")
    new = written(readme, json.loads(RESULTS.read_text(encoding="utf-8")))
    if options.check:
        return int(new != readme)
    README.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
