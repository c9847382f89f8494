"""`python -m sglang_moe_ext inspect`: arguments, and which module does the work."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

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
    """Per device, the backend that would serve this routing and why not the faster ones."""
    if not routing.reaches_router:
        return {"any": f"SGLang itself, whose {routing.kind} routing this model uses"}
    if importlib.util.find_spec("torch") is None:
        return dict.fromkeys(DEVICES, "unknown (torch is not installed)")
    from sglang_moe_ext.ops.choose import explain
    from sglang_moe_ext.ops.spec import RouterSpec

    answers = {}
    for device in DEVICES:
        spec = RouterSpec(
            num_experts=routing.num_experts,
            topk=routing.topk,
            num_expert_group=routing.num_expert_group,
            topk_group=routing.topk_group,
            renormalize=routing.renormalize,
            routed_scaling_factor=routing.routed_scaling_factor,
            device_type=device,
        )
        candidates = explain(spec)
        serving = next(name for name, refusal in candidates if refusal is None)
        passed = [f"not {name}: {why}" for name, why in candidates if why is not None]
        answers[device] = "; ".join([serving, *passed])
    return answers
