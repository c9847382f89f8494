"""`python -m sglang_moe_ext inspect`: arguments, and which module does the work."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sglang_moe_ext import limits

if TYPE_CHECKING:
    from sglang_moe_ext.checkpoint.routing import Routing

DEVICES = ("cpu", "cuda", "xpu")


def add_inspect_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "inspect",
        help="look into a local safetensors checkpoint: is its routing what it should be?",
        description="Reads headers, gates and correction biases; exits with 1 if one is wrong.",
    )
    parser.add_argument("path", type=Path, help="checkpoint directory, or one .safetensors file")
    parser.add_argument("--compare", type=Path, metavar="BASE", help="the checkpoint it came from")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw the bias of every layer")
    parser.set_defaults(run=run_inspect)


def run_inspect(args: argparse.Namespace) -> int:
    """Print the report; 0: healthy, 1: not, 2: a library or the picture could not be had."""
    try:
        return _inspect(args)
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library not in ("numpy", "matplotlib"):
            raise
        print(
            f"inspect needs {library}, which is not installed: "
            "pip install 'sglang-moe-ext[inspect]'",
            file=sys.stderr,
        )
        return 2


def _inspect(args: argparse.Namespace) -> int:
    # These need numpy, which the base install does not bring.
    from sglang_moe_ext.checkpoint import comparison, inspection, plot, report

    if args.compare:
        result = comparison.compare_checkpoints(args.path, args.compare)
    else:
        result = inspection.inspect_checkpoint(args.path)
    if result.routing:
        result.serving = serving_backends(result.routing)
    print(report.as_json(result) if args.json else report.as_text(result))
    if args.plot:
        try:
            plot.draw_bias(result, args.plot)
        except (ValueError, OSError) as error:
            print(f"no picture: {error}", file=sys.stderr)
            return 2
    return 0 if result.healthy else 1


def serving_backends(routing: Routing) -> dict[str, str]:
    """Per device, the backend that takes this shape and why not the faster ones.

    Nothing is imported for it, torch least of all: it would take more memory than inspecting.
    """
    if not routing.reaches_router:
        return {"any": f"SGLang itself, whose {routing.kind} routing this model uses"}
    answers = {}
    for device in DEVICES:
        candidates = limits.PREFERENCE[device] + limits.PORTABLE
        refusals = {name: limits.refusal(name, routing) for name in candidates}
        serving = next(name for name in candidates if refusals[name] is None)
        passed = [f"not {name}: {why}" for name, why in refusals.items() if why]
        answers[device] = "; ".join([serving + _needs(serving, routing), *passed])
    return answers


def _needs(backend: str, routing: Routing) -> str:
    library = limits.LIBRARIES.get(backend)
    if library is None:
        return ""
    taking = [rule.operation for rule in limits.XPU_RULES if rule.refusal(routing) is None]
    what = f"{library}'s {' or '.join(taking)}" if backend == "xpu" else library
    absent = importlib.util.find_spec(library) is None
    return f", with {what}" + ", which is not installed here" * absent
