"""The command line: doctor, inspect and bench."""

from __future__ import annotations

import argparse
import os
import sys

from sglang_moe_ext import __version__, env
from sglang_moe_ext.bench.command import add_bench_parser
from sglang_moe_ext.checkpoint.command import add_inspect_parser


def main(argv: list[str] | None = None) -> int:
    """Parse and run; the exit code."""
    args = _parser().parse_args(argv)
    try:
        code: int = args.run(args)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    return code


def _parser() -> argparse.ArgumentParser:
    width = max(len(variable.name) for variable in env.VARIABLES)
    variables = "\n".join(
        f"  {variable.name.ljust(width)}  {variable.meaning}\n"
        f"  {' ' * width}  {variable.allowed}; default {variable.default or 'unset'}"
        for variable in env.VARIABLES
    )
    parser = argparse.ArgumentParser(
        prog="sglang-moe-ext",
        description="MoE routing for SGLang: is it live, is a checkpoint fit, is it fast?",
        epilog=f"environment variables:\n{variables}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="command")
    doctor = commands.add_parser(
        "doctor", help="is the plugin live, which backend serves which model, what to do"
    )
    doctor.add_argument("--json", action="store_true", help="print the report as JSON")
    doctor.set_defaults(run=_doctor)
    add_inspect_parser(commands)
    add_bench_parser(commands)
    return parser


def _doctor(args: argparse.Namespace) -> int:
    from sglang_moe_ext import doctor

    return doctor.run(args.json)
