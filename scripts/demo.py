"""The demonstration behind demo.sh: serve a made checkpoint, ask it, show what routed what."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openai import OpenAI
from plain_cpu.serving import Server, ServerError

from sglang_moe_ext import trace

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "test"))
from sim_xpu import sim_environment  # noqa: E402

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


@dataclass(frozen=True)
class Run:
    """One server: a title, its checkpoint, and how it is started.

    backend: what must route, or None if any of ours may.
    """

    title: str
    model: Path
    tp: int = 1
    arguments: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    backend: str | None = None


def main() -> int:
    args = _arguments()
    try:
        runs = _cpu_runs(args) if args.device == "cpu" else _simulated_xpu_runs(args)
        texts = [_serve(run, number) for number, run in enumerate(runs)]
        if args.device == "cpu" and any(text != texts[0] for text in texts):
            raise DemoError("the sizes of --tp gave different texts")
    except (ServerError, FileNotFoundError, DemoError) as error:
        print(f"\ndemo: FAILED: {error}", file=sys.stderr)
        return 1
    titles = " and ".join(run.title for run in runs)
    print(f"\ndemo: OK: {titles}: {len(PROMPTS)} answers each, all routed by sglang-moe-ext")
    return 0


def _cpu_runs(args: argparse.Namespace) -> list[Run]:
    model = args.model_path or _make_checkpoint("checkpoint")
    return [Run(f"--tp {tp}", model, tp) for tp in args.tp]


def _simulated_xpu_runs(args: argparse.Namespace) -> list[Run]:
    """One checkpoint for each kind of kernel, unless one is given."""
    models = {"simulated XPU": args.model_path}
    if not args.model_path:
        print("The XPU is SIMULATED: its kernels run on this CPU, and speed means nothing")
        models = {
            "simulated XPU, one group": _make_checkpoint(
                "ungrouped", "--groups", "1", "--kept-groups", "1"
            ),
            "simulated XPU, 4 groups": _make_checkpoint(
                "grouped", "--experts", "128", "--groups", "4", "--expert-hidden", "16"
            ),
        }
    environment = {
        **sim_environment(),
        "SGLANG_PLATFORM": "",
        "SGLANG_PLUGINS": "moe_ext",
    }
    arguments = ("--device", "xpu")
    return [
        Run(title, model, 1, arguments, environment, backend="xpu")
        for title, model in models.items()
    ]


class DemoError(RuntimeError):
    """The server answered, but not as it should."""


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="demo.sh", description=__doc__)
    parser.add_argument(
        "--model-path", type=Path, help="serve this checkpoint instead of a made one"
    )
    parser.add_argument(
        "--device",
        choices=("cpu", "xpu-sim"),
        default="cpu",
        help="xpu-sim: a simulated Intel XPU with stand-in kernels (default cpu)",
    )
    parser.add_argument(
        "--tp",
        type=int,
        nargs="+",
        default=[1, 2],
        help="tensor parallel sizes on the CPU (default 1 2)",
    )
    return parser.parse_args()


def _make_checkpoint(name: str, *arguments: str) -> Path:
    path = CACHE / name
    script = ROOT / "scripts" / "make_checkpoint.py"
    subprocess.run([sys.executable, script, path, *arguments], check=True)
    return path


def _serve(run: Run, number: int) -> list[str]:
    """Start a server, send every prompt, print what happened; the texts."""
    print(f"\n== python -m sglang.launch_server with the plugin, {run.title} ==")
    traces = CACHE / f"trace-{number}"
    for old in traces.glob("*.jsonl"):
        old.unlink()
    server = Server(
        run.model,
        CACHE / f"server-{number}.log",
        tp=run.tp,
        # In bfloat16 the ranks' partial sums round differently, and tokens with them.
        arguments=("--dtype", "float32", *run.arguments),
        environment={
            "SGLANG_MOE_EXT_TRACE": str(traces),
            "SGLANG_MOE_EXT_STRICT": "1",
            **run.environment,
        },
        progress=_show_wait,
    )
    started = time.monotonic()
    with server:
        print(f"{LINE_START}healthy after {time.monotonic() - started:.0f} s       ")
        texts = _ask(server)
        time.sleep(2 * trace.TOTALS_EVERY_S)  # let the last totals be written
    _report(list(trace.read(traces)), run, server)
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


def _report(records: list[dict[str, Any]], run: Run, server: Server) -> None:
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
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print(f"  {line}".rstrip())
    for what in ("gate", "router"):
        workers = {r["pid"] for r in records if r["what"] == what and r["calls"]}
        if len(workers) != run.tp:
            raise DemoError(
                f"{len(workers)} workers ran our {what}, expected {run.tp}; the log {server.log} "
                f"ends with\n{server.log_tail()}"
            )
    for record in records:
        backend, expected = record["backend"], run.backend
        if backend == "upstream" or (
            record["what"] == "router" and expected not in (None, backend)
        ):
            raise DemoError(
                f"the {record['what']} {record['shape']} ran on {backend} ({record['detail']}), "
                f"expected {expected or 'a backend of ours'}; passed over: {record['rejected']}"
            )


if __name__ == "__main__":
    sys.exit(main())
