"""The demonstration behind demo.sh: serve a made checkpoint, ask it, show what routed what."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from openai import OpenAI
from plain_cpu.serving import Server, ServerError

from sglang_moe_ext import trace

ROOT = Path(__file__).parent.parent
CACHE = ROOT / ".cache" / "demo"
PROMPTS = (
    "The router sends every token",
    "A correction bias",
    "Experts are arranged in groups, and only the best groups are searched, because",
    "0123456789",
    "Which experts ran?",
    "One, two, three, four, five, six,",
    "SGLang",
    "The answer is",
)
NEW_TOKENS = 32
LINE_START = "\r" if sys.stdout.isatty() else ""
COLUMNS = (
    "process",
    "what",
    "layer shape",
    "device",
    "dtype",
    "backend",
    "reason",
    "calls",
    "tokens",
)


def main() -> int:
    args = _arguments()
    try:
        model = args.model_path or _make_checkpoint()
        texts = [_serve(model, tp) for tp in args.tp]
    except (ServerError, FileNotFoundError, DemoError) as error:
        print(f"\ndemo: FAILED: {error}", file=sys.stderr)
        return 1
    if any(text != texts[0] for text in texts):
        print("\ndemo: FAILED: the sizes of --tp gave different texts", file=sys.stderr)
        return 1
    sizes = " and ".join(f"--tp {tp}" for tp in args.tp)
    print(f"\ndemo: OK: {sizes}, {len(PROMPTS)} answers each, all routed by sglang-moe-ext")
    return 0


class DemoError(RuntimeError):
    """The server answered, but not as it should."""


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="demo.sh", description=__doc__)
    parser.add_argument(
        "--model-path", type=Path, help="serve this checkpoint instead of a made one"
    )
    parser.add_argument(
        "--tp", type=int, nargs="+", default=[1, 2], help="tensor parallel sizes (default 1 2)"
    )
    return parser.parse_args()


def _make_checkpoint() -> Path:
    path = CACHE / "checkpoint"
    subprocess.run([sys.executable, ROOT / "scripts" / "make_checkpoint.py", path], check=True)
    return path


def _serve(model: Path, tp: int) -> list[str]:
    """Serve with `tp` ranks, send every prompt, print what happened; the texts."""
    print(f"\n== python -m sglang.launch_server --tp {tp}, with the plugin ==")
    traces = CACHE / f"trace-tp{tp}"
    for old in traces.glob("*.jsonl"):
        old.unlink()
    server = Server(
        model,
        CACHE / f"server-tp{tp}.log",
        tp=tp,
        # In bfloat16 the ranks' partial sums round differently, and tokens with them.
        arguments=("--dtype", "float32"),
        environment={"SGLANG_MOE_EXT_TRACE": str(traces), "SGLANG_MOE_EXT_STRICT": "1"},
        progress=_show_wait,
    )
    started = time.monotonic()
    with server:
        print(f"{LINE_START}healthy after {time.monotonic() - started:.0f} s       ")
        texts = _ask(server)
        time.sleep(2 * trace.TOTALS_EVERY_S)  # let the last totals be written
    _report(list(trace.read(traces)), tp, server)
    return texts


def _show_wait(seconds: float) -> None:
    if sys.stdout.isatty():
        print(f"\rwaiting for the server: {seconds:.0f} s", end="", flush=True)


def _ask(server: Server) -> list[str]:
    client = OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120)

    def complete(prompt: str) -> Any:
        return client.completions.create(
            model="default", prompt=prompt, max_tokens=NEW_TOKENS, temperature=0
        )

    started = time.monotonic()
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        answers = list(pool.map(complete, PROMPTS))
    elapsed = time.monotonic() - started
    texts = [str(answer.choices[0].text) for answer in answers]
    for prompt, text in zip(PROMPTS, texts, strict=True):
        print(f"  {prompt[:36]!r:40} ->{text[:70]}...")
    tokens = sum(answer.usage.completion_tokens for answer in answers)
    if tokens != NEW_TOKENS * len(PROMPTS):
        raise DemoError(f"{tokens} tokens came back, expected {NEW_TOKENS * len(PROMPTS)}")
    print(f"  {len(PROMPTS)} requests at once: {tokens} tokens, {tokens / elapsed:.0f} tokens/s")

    stream = client.completions.create(
        model="default", prompt=PROMPTS[0], max_tokens=NEW_TOKENS, temperature=0, stream=True
    )
    pieces = [chunk.choices[0].text for chunk in stream if chunk.choices]
    if "".join(pieces) != texts[0]:
        raise DemoError(f"streaming gave {''.join(pieces)!r}, expected {texts[0]!r}")
    print(f"  one streaming: {len(pieces)} pieces, the same text")
    return texts


def _report(records: list[dict[str, Any]], tp: int, server: Server) -> None:
    """Print the table of decisions; DemoError unless every worker routed with us."""
    rows = [
        (
            f"{record['role']} ({record['pid']})",
            record["what"],
            record["shape"],
            record["device"],
            record["dtype"],
            record["backend"],
            record["detail"],
            str(record["calls"]),
            str(record["tokens"]),
        )
        for record in records
    ]
    widths = [max(len(row[i]) for row in (COLUMNS, *rows)) for i in range(len(COLUMNS))]
    for row in (COLUMNS, *rows):
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))
    for what in ("gate", "router"):
        workers = {r["pid"] for r in records if r["what"] == what and r["calls"]}
        if len(workers) != tp:
            raise DemoError(
                f"{len(workers)} workers ran our {what}, expected {tp}; the log {server.log} "
                f"ends with\n{server.log_tail()}"
            )
    upstream = [row for row in rows if row[5] == "upstream"]
    if upstream:
        raise DemoError(f"left to SGLang: {upstream}, expected nothing")


if __name__ == "__main__":
    sys.exit(main())
