"""Tokens per second of a served checkpoint, with the plugin and stock, turn by turn.

    python scripts/bench_server.py --out benchmarks/server-cpu.csv

A router is a small part of a model: this shows whether what it wins survives to the user.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.request import Request, urlopen

from plain_cpu.serving import Server

from sglang_moe_ext import host

ROOT = Path(__file__).parent.parent
CACHE = ROOT / ".cache" / "bench"
SHAPE = ("--experts", "64", "--groups", "8", "--kept-groups", "4", "--topk", "8", "--layers", "6",
         "--expert-hidden", "32")  # fmt: skip
PROMPTS, NEW_TOKENS, BURSTS = 32, 64, 3


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--turns", type=int, default=2, help="servers of each kind (default 2)")
    parser.add_argument("--out", type=Path, help="CSV file to write")
    args = parser.parse_args()
    script = ROOT / "scripts" / "make_checkpoint.py"
    subprocess.run([sys.executable, script, CACHE / "checkpoint", *SHAPE], check=True)

    rows = []
    for turn in range(args.turns):
        for plugin in (True, False):
            name = "plugin" if plugin else "stock"
            for speed in tokens_per_second(plugin):
                rows.append({"server": name, "turn": turn, "tokens_per_s": round(speed, 1)})
                print(f"turn {turn}, {name}: {speed:.1f} tokens/s", flush=True)
    medians = {
        name: statistics.median(row["tokens_per_s"] for row in rows if row["server"] == name)
        for name in ("plugin", "stock")
    }
    print(f"\nmedians: {medians}; plugin / stock {medians['plugin'] / medians['stock']:.2f}")
    if args.out:
        with args.out.open("w", newline="", encoding="utf-8") as file:
            columns = [*rows[0], "sglang", "shape"]
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            shape = " ".join(SHAPE)
            writer.writerows({**row, "sglang": host.release(), "shape": shape} for row in rows)


def tokens_per_second(plugin: bool) -> list[float]:
    """One server's speed in each of BURSTS bursts, after one to warm up."""
    server = Server(
        CACHE / "checkpoint",
        CACHE / "server.log",
        arguments=("--disable-radix-cache",),
        environment={"SGLANG_MOE_EXT": str(int(plugin)), "SGLANG_MOE_EXT_STRICT": "1"},
    )
    with server, ThreadPoolExecutor(PROMPTS) as pool:
        speeds = []
        for _ in range(1 + BURSTS):
            started = time.perf_counter()
            list(pool.map(lambda number: generate(server, number), range(PROMPTS)))
            speeds.append(PROMPTS * NEW_TOKENS / (time.perf_counter() - started))
    return speeds[1:]


def generate(server: Server, number: int) -> None:
    prompt = [2 + (number * 37 + 11 * position) % 500 for position in range(8 + number)]
    sampling = {"temperature": 0, "max_new_tokens": NEW_TOKENS, "ignore_eos": True}
    body = json.dumps({"input_ids": prompt, "sampling_params": sampling}).encode()
    request = Request(f"{server.url}/generate", body, {"Content-Type": "application/json"})
    with urlopen(request, timeout=300) as answer:
        answer.read()


if __name__ == "__main__":
    main()
