"""`python -m sglang_moe_ext bench`: arguments, exit codes, and the order of events."""

from __future__ import annotations

import argparse
import sys
from itertools import chain
from pathlib import Path

from sglang_moe_ext.bench import report
from sglang_moe_ext.bench.peers import PEERS
from sglang_moe_ext.bench.result import FAILED, TIMED, WRONG, Result
from sglang_moe_ext.bench.routers import routers
from sglang_moe_ext.bench.shapes import DEFAULT, parse_shapes

TOKENS_CPU, TOKENS_GPU = (1, 16, 256, 4096), (1, 16, 128, 1024, 8192)
DETAILS = """\
An answer is checked first: a router that is wrong is said to be so, and gets no time. Every
timed call takes the next of 16 different inputs. `graph`, calls captured in a CUDA graph that
cycles the inputs, is the device's time; `call` is one call from Python, awaited on a CPU, not
awaited on a GPU, where it is the launcher's own time; `lap`, on an XPU, is all 16 called in a
row and awaited. The floor is torch.sigmoid of the same logits: one pass over them.

exit code: 0; 1 if nothing could be timed or a router of ours was wrong or raised; 2 if it
cannot run.
"""


class CannotRunError(Exception):
    """One line that says what is missing or impossible."""


def add_bench_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "bench",
        help="time the routers on this machine beside SGLang's and other peers",
        description="Time every router of ours beside every peer that is installed.",
        epilog=DETAILS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda", "xpu"), help="default: the best that torch sees")
    add(
        "--shapes",
        nargs="+",
        type=parse_shapes,
        default=[DEFAULT],
        metavar="SHAPE",
        help="experts/top-k, as 384/8, with groups as 256/8g8tg4, or all, which are those of "
        f"--list; default: {' '.join(shape.text for shape in DEFAULT)}",
    )
    add(
        "--tokens",
        nargs="+",
        type=_count,
        metavar="N",
        help=f"default: {_spaced(TOKENS_CPU)}; on a GPU {_spaced(TOKENS_GPU)}",
    )
    add("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of logits")
    add("--peers", nargs="*", choices=list(PEERS), default=list(PEERS), help="default: all")
    add("--out", type=Path, metavar="CSV", help="write every time there")
    add("--commit", help="for the CSV; default: asks git, or the version if we lie in no checkout")
    add("--list", action="store_true", help="print shapes and routers, and leave")
    parser.set_defaults(run=run_bench)


def run_bench(args: argparse.Namespace) -> int:
    """The exit code; see DETAILS."""
    if args.list:
        print("shapes: ", ", ".join(shape.title for shape in parse_shapes("all")))
        print("routers:", ", ".join(f"{r.name} ({r.role})" for r in routers(list(PEERS))))
        return 0
    try:
        return _bench(args)
    except CannotRunError as reason:
        print(f"bench: {reason}", file=sys.stderr)
        return 2


def _bench(args: argparse.Namespace) -> int:
    try:
        import torch
    except ModuleNotFoundError as error:
        raise CannotRunError(
            "needs torch, which is not installed: install the PyTorch that SGLang uses"
        ) from error
    from sglang_moe_ext import env
    from sglang_moe_ext.bench import context, measure

    device = args.device or measure.best_device()
    if device != "cpu" and not getattr(torch, device).is_available():
        raise CannotRunError(f"--device {device}: torch {torch.__version__} sees no such device")
    if args.out and not args.out.resolve().parent.is_dir():
        raise CannotRunError(f"--out {args.out}: there is no directory {args.out.parent}")
    try:
        env.settings()
    except env.EnvError as error:
        raise CannotRunError(str(error)) from error
    shapes, specs = list(chain(*args.shapes)), []
    for shape in shapes:
        try:
            specs.append(measure.make_spec(shape, device, args.dtype))
        except ValueError as error:
            raise CannotRunError(f"--shapes {shape.text}: {error}") from error

    tokens = args.tokens or (TOKENS_CPU if device == "cpu" else TOKENS_GPU)
    machine = context.describe_machine(device, args.commit)
    taken = dict.fromkeys(chain(*(measure.measures(device, rows) for rows in tokens)))
    print(report.conditions(machine, args.dtype, list(taken)), flush=True)
    busy = context.find_other_work() if device == "cpu" else None
    results: list[Result] = []
    for shape, spec in zip(shapes, specs, strict=True):
        chosen = measure.automatic_choice(spec)
        of_shape = list(
            measure.measure_shape(shape, spec, list(routers(args.peers)), tokens, _progress)
        )
        print("", report.block(shape, of_shape, chosen), sep="\n", flush=True)
        results += of_shape
    print("", *report.notes(results), *([busy] if busy else []), sep="\n")
    if args.out:
        try:
            report.write_csv(args.out, results, machine)
        except OSError as error:
            raise CannotRunError(f"--out {args.out}: {error.strerror}") from error
    ours_broken = any(r.role == "ours" and r.verdict in (WRONG, FAILED) for r in results)
    return int(ours_broken or not any(r.verdict == TIMED for r in results if r.role != "floor"))


def _progress(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number from 1")
    return int(text)


def _spaced(numbers: tuple[int, ...]) -> str:
    return " ".join(map(str, numbers))
