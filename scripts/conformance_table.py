"""The README's table of failure classes and backends, from what the test run found.

python scripts/conformance_table.py            writes README.md from the recorded results
python scripts/conformance_table.py --run      runs every check first that can run here, and
                                               records the results

test/registered/conformance/test_failures.py compares both with its run, and on a CUDA device
test/registered/cuda/test_failures_cuda.py.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "test"))
from sim_xpu import sim_environment
from test_support import conformance_record
from test_support.conformance import Results, run_groups
from test_support.conformance_columns import COLUMNS, GROUPS, NOT_RUN, OK, WRONG, missing
from test_support.failure_classes import FAILURE_CLASSES

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
START, END = "<!-- failures -->\n", "<!-- /failures -->\n"
CELLS = {OK: "ok", WRONG: "**wrong**", NOT_RUN: "-"}


def verdict_of(failure: str, column: str, results: Results) -> str:
    """Of a class: right only if every check of it that ran is, on every path."""
    verdicts = {
        columns[column]
        for name, paths in results.items()
        if name.startswith(failure)
        for columns in paths.values()
    }
    return next(verdict for verdict in (WRONG, OK, NOT_RUN) if verdict in verdicts)


def markdown(results: Results) -> str:
    run = [failure for failure in FAILURE_CLASSES if any(n.startswith(failure) for n in results)]
    calls = sum(verdict == OK for _, verdict in _ours(results))
    wrong = sum(verdict == WRONG for _, verdict in _ours(results))
    lines = [
        f"{len(run)} classes, {len(results)} checks, {calls + wrong} runs of them on our backends: "
        f"{wrong} wrong.",
        "",
        _row(["", "what goes wrong", *(column.heading for column in COLUMNS.values())]),
        _row(["---"] * (2 + len(COLUMNS))),
    ]
    for failure in run:
        cells = [CELLS[verdict_of(failure, column, results)] for column in COLUMNS]
        lines.append(_row([failure, FAILURE_CLASSES[failure].what, *cells]))
    lines += ["", "Tested elsewhere, or out of a router's reach:", ""]
    lines += _elsewhere(run)
    return "\n".join(lines) + "\n"


def _ours(results: Results) -> Iterator[tuple[str, str]]:
    for paths in results.values():
        for columns in paths.values():
            for column, verdict in columns.items():
                if COLUMNS[column].backend:
                    yield column, verdict


def _elsewhere(run: list[str]) -> Iterator[str]:
    training = [f for f in FAILURE_CLASSES if f >= "F50"]
    for failure, described in FAILURE_CLASSES.items():
        if failure in run or failure in training:
            continue
        where = described.unreachable or ", ".join(
            f"`{test.partition('::')[2]}`" for test in described.tests
        )
        yield f"- {failure} {described.what}: {where}"
    yield f"- {training[0]} to {training[-1]}: {FAILURE_CLASSES[training[0]].unreachable}"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def in_readme() -> str:
    text = README.read_text(encoding="utf-8")
    return text.partition(START)[2].partition(END)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--run", action="store_true", help="run the checks, record the results")
    if parser.parse_args().run:
        here = [group for group in GROUPS if missing(group) is None]
        conformance_record.save(run_groups(here, sim_environment(), 1200))
    results = conformance_record.load()
    text = README.read_text(encoding="utf-8")
    before, _, rest = text.partition(START)
    if not rest:
        raise SystemExit(f"{README} has no line {START.strip()}")
    README.write_text(
        before + START + markdown(results) + END + rest.partition(END)[2], encoding="utf-8"
    )


if __name__ == "__main__":
    main()
