"""The README's section on faults and load, made from the results of the runs.

python scripts/faults_table.py            prints it
python scripts/faults_table.py --write    puts it between the README's markers
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
FAULTS, SOAK = ROOT / "benchmarks" / "faults.json", ROOT / "benchmarks" / "soak.json"
MARKERS = ("<!-- faults -->", "<!-- /faults -->")
LONGEST_QUOTE = 150


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="into the README")
    args = parser.parse_args()
    if args.write:
        README.write_text(updated(README.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(section())


def updated(readme: str) -> str:
    """The README with the text between its markers made anew."""
    begin, end = MARKERS
    before, _, rest = readme.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise SystemExit(f"README.md lacks {begin} ... {end}")
    return f"{before}{begin}\n{section()}\n{end}{after}"


def section() -> str:
    faults = json.loads(FAULTS.read_text(encoding="utf-8"))
    soak = json.loads(SOAK.read_text(encoding="utf-8"))
    servers = sum(row["where"] == "server" for row in faults.values())
    table = [
        f"{len(faults)} faults injected, {servers} of them into every process of a real server:",
        "",
        "| fault | came of it | said, once |",
        "|---|---|---|",
        *(f"| {fault} | {row['outcome']} | {_quote(row)} |" for fault, row in faults.items()),
    ]
    return "\n".join([*table, "", _load(soak)])


def _quote(row: dict[str, Any]) -> str:
    if not row["said"]:
        return ""
    line = re.sub(r"^sglang-moe-ext(?: [\d.]+)?:? |\(SGLang \S+ stays stock\)", "", row["said"][0])
    line = line.partition(". Run `python")[0].replace("|", "\\|").replace("  ", " ")
    line = line.replace(" is NOT active :", "is NOT active:")
    return f"`{line[:LONGEST_QUOTE]}{'…' if len(line) > LONGEST_QUOTE else ''}`"


def _load(soak: dict[str, Any]) -> str:
    growth = soak["memory_last_mib"] - soak["memory_first_mib"]
    return (
        f"Under load (`python scripts/soak.py --seconds {soak['seconds']:.0f}`, {soak['clients']} "
        f"clients streaming, chunked prefill and radix cache on): {soak['requests']} answers "
        f"compared with the same prompts asked one by one, **{soak['wrong']} wrong, "
        f"{soak['dropped']} dropped**. The trace counted {soak['routed']} routed rows, the API's "
        f"token counts account for {soak['expected']}. The worker's private "
        f"memory was {soak['memory_first_mib']:.1f} MiB after the warm-up and {growth:+.1f} MiB at "
        f"the end (slope {soak['memory_mib_per_hour']:+.1f} MiB an hour)."
    )


if __name__ == "__main__":
    main()
