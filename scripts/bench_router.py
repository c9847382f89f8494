#!/usr/bin/env python3
"""Time every router of this package beside every peer that can be imported, in one run.

    python scripts/bench_router.py --device cuda --out benchmarks/h200.csv
    python scripts/bench_router.py --shapes 256/8g8tg4 --tokens 1 256 --peers sglang_compiled
    python scripts/bench_router.py --list

An answer is checked first: a router that is wrong gets a line that says so, and no time.
Every timed call takes the next of 16 different inputs, since caches and branch predictors
learn a repeated one. Figures are medians in microseconds per call, of two measures:
`graph`, calls captured in a CUDA graph that cycles the inputs, replayed and divided by
their number, is the device's time; `call` is one call from Python, awaited on a CPU, not
awaited on a GPU, where it is the launcher's own time. The floor is `torch.sigmoid` of the
same logits: one pass over them and nothing else.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import importlib.metadata
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

import torch  # noqa: E402
from router_peers import PEERS, UnavailableError  # noqa: E402
from router_timing import Input, quantiles, time_calls, time_graph  # noqa: E402

from sglang_moe_ext.ops.backend import Run  # noqa: E402
from sglang_moe_ext.ops.choose import MODULES  # noqa: E402
from sglang_moe_ext.ops.compare import find_mismatch  # noqa: E402
from sglang_moe_ext.ops.spec import RouterSpec  # noqa: E402

SHAPES = {  # experts/top-k, groups: a model that routes so
    "256/8g8tg4": "DeepSeek-V3",
    "384/8": "Kimi-K2",
    "128/6": "Nemotron-3-Nano",
    "256/8": "GLM-5, MiniMax-M2",
    "512/22": "Nemotron-3-Super",
    "896/16": "Kimi-K3",
}
TOKENS = (1, 16, 128, 1024, 8192)
INPUTS = 16
CHECKED_ROWS = 512
FLOOR = "sigmoid"
NOT_TIMED = {"reference"}  # float64 on the CPU: the judge


class Router(NamedTuple):
    name: str
    role: str  # ours, peer or floor
    bind: Callable[[RouterSpec], Run]


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    routers = list(_routers(options.peers))
    if options.list:
        print("shapes: ", ", ".join(f"{name} ({model})" for name, model in SHAPES.items()))
        print("routers:", ", ".join(f"{r.name} ({r.role})" for r in routers))
        return 0
    if options.device != "cpu" and not getattr(torch, options.device).is_available():
        sys.exit(f"--device {options.device}: torch {torch.__version__} sees no such device")
    context = _context(options.device, options.commit)
    rows = []
    for shape in options.shapes:
        spec = parse_shape(shape, options.device, getattr(torch, options.dtype))
        for router, run in _bound(routers, spec):
            for tokens in options.tokens:
                for measure, timing in _measure(router, run, spec, tokens):
                    rows.append({"shape": shape, "tokens": tokens, "router": router.name})
                    rows[-1] |= {"role": router.role, "measure": measure, **timing, **context}
    if options.out and rows:
        with options.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    return 0 if rows else 1


def parse_shape(text: str, device: str, dtype: torch.dtype) -> RouterSpec:
    """`experts/top-k` with an optional `g<groups>tg<groups kept>`, as in 256/8g8tg4."""
    match = re.fullmatch(r"(\d+)/(\d+)(?:g(\d+)tg(\d+))?", text)
    if not match:
        sys.exit(f"--shapes {text}: expected experts/top-k or experts/top-kgGtgK, as 256/8g8tg4")
    experts, topk, groups, kept = (int(part or 1) for part in match.groups())
    return RouterSpec(
        num_experts=experts,
        topk=topk,
        num_expert_group=groups,
        topk_group=kept,
        routed_scaling_factor=2.5,
        apply_routed_scaling_factor_on_output=True,
        logits_dtype=dtype,
        device_type=device,
    )


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    summary, _, details = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda", "xpu"), default="cpu")
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), help="as 256/8g8tg4 or 384/8")
    parser.add_argument("--tokens", nargs="+", type=int, default=list(TOKENS))
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument(
        "--peers", nargs="*", choices=list(PEERS), default=list(PEERS), help="default: all"
    )
    parser.add_argument("--out", type=Path, help="CSV file to write")
    parser.add_argument("--commit", help="of a copy without its history; default: asks git")
    parser.add_argument("--list", action="store_true", help="print shapes and routers, and leave")
    return parser.parse_args(arguments)


def _routers(peers: Sequence[str]) -> Iterator[Router]:
    for name, module in MODULES.items():
        if name not in NOT_TIMED:
            yield Router(name, "ours", _backend(module))
    for name in peers:
        yield Router(name, "peer", PEERS[name])
    yield Router(FLOOR, "floor", lambda spec: lambda logits, bias: (logits.sigmoid(), bias))


def _backend(module: str) -> Callable[[RouterSpec], Run]:
    def bind(spec: RouterSpec) -> Run:
        try:
            backend = importlib.import_module(module)
        except ImportError as error:
            raise UnavailableError(str(error)) from error
        reason = backend.supports(spec)
        if reason:
            raise UnavailableError(reason)
        run: Run = backend.prepare(spec).run
        return run

    return bind


def _bound(routers: Sequence[Router], spec: RouterSpec) -> Iterator[tuple[Router, Run]]:
    for router in routers:
        try:
            yield router, router.bind(spec)
        except UnavailableError as reason:
            print(f"{spec!s:16} {router.name:16} skipped: {reason}", flush=True)


def _measure(
    router: Router, run: Run, spec: RouterSpec, tokens: int
) -> Iterator[tuple[str, dict[str, float]]]:
    """(measure, its quantiles); prints them, or why there are none."""
    head = f"{spec!s:16} {tokens:5} {router.name:16}"
    inputs = _inputs(spec, tokens)
    try:
        wrong = router.role != "floor" and _mismatch(run, inputs, spec)
    except Exception as error:  # a peer may refuse in any way; the others still get their turn
        print(f"{head} failed: {type(error).__name__}: {str(error)[:200]}", flush=True)
        return
    if wrong:
        print(f"{head} WRONG, not timed: {wrong[:300]}", flush=True)
        return
    measures = [("call", time_calls)] if spec.device_type == "cpu" else []
    if spec.device_type != "cpu" and tokens == 1:
        measures.append(("call", time_calls))
    if spec.device_type == "cuda":
        measures.append(("graph", time_graph))
    for measure, timer in measures:
        timing = quantiles(timer(run, inputs))
        print(f"{head} {measure:5} {timing['median_us']:10.2f} us", flush=True)
        yield measure, timing


def _inputs(spec: RouterSpec, tokens: int) -> list[Input]:
    """Different logits, one bias, as consecutive steps of one layer have."""
    generator = torch.Generator().manual_seed(tokens)
    bias = (0.1 * torch.randn(spec.num_experts, generator=generator)).to(spec.device_type)
    logits = torch.randn(INPUTS, tokens, spec.num_experts, generator=generator) * 1.5
    return [Input(x, bias) for x in logits.to(spec.device_type, spec.logits_dtype)]


def _mismatch(run: Run, inputs: Sequence[Input], spec: RouterSpec) -> str | None:
    """Judge a sample of rows, in the order of their keys, which not every peer promises."""
    for logits, bias in inputs if len(inputs[0].logits) <= CHECKED_ROWS else inputs[:1]:
        weights, ids = run(logits, bias)
        sample = torch.linspace(0, len(logits) - 1, min(len(logits), CHECKED_ROWS)).long()
        weights, ids, x = weights[sample].cpu(), ids[sample].cpu(), logits[sample].cpu()
        key = x.double().sigmoid().float() + bias.cpu().float()
        if ids.min() < 0 or ids.max() >= spec.num_experts:
            return f"ids outside 0..{spec.num_experts - 1}"
        by_id = ids.sort(dim=1).indices
        by_key = key.gather(1, ids.gather(1, by_id).long())
        by_key = by_key.sort(dim=1, descending=True, stable=True)
        order = by_id.gather(1, by_key.indices)
        wrong = find_mismatch(
            weights.float().gather(1, order), ids.gather(1, order), x, bias.cpu(), spec
        )
        if wrong:
            return wrong
    return None


def _context(device: str, commit: str | None) -> dict[str, str]:
    """Where the figures come from: columns that are the same on every row."""
    names = ("torch", "triton", "numba", "sglang", "flashinfer-python")
    versions = {name: _version(name) for name in names}
    if device == "cpu":
        hardware, driver = f"{_cpu_model()}, {torch.get_num_threads()} threads", ""
    else:
        hardware = getattr(torch, device).get_device_name()
        driver = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    commit = commit or _output("git", "-C", str(REPOSITORY), "describe", "--always", "--dirty")
    return {"device": hardware, "driver": driver, **versions, "commit": commit}


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", info.read_text() if info.exists() else "")
    return found[1] if found else platform.processor()


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


if __name__ == "__main__":
    raise SystemExit(main())
