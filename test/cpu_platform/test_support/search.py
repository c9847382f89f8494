"""Search for router calls that some backend gets wrong.

    python -m test_support.search --backends torch cpu --examples 2000 --seed 0

prints one JSON line: how many examples were tried, and the smallest one that failed. `triton`
needs TRITON_INTERPRET=1 in the environment, `xpu` the simulated XPU of test/sim_xpu.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import hypothesis
import torch
from hypothesis import HealthCheck, Phase, given, settings

from sglang_moe_ext.ops import dispatch
from test_support.example_inputs import Example, Limits, examples
from test_support.properties import RELATIONS, check

MODELS = ((256, 8), (256, 1), (384, 1), (160, 1), (128, 1), (512, 1), (896, 1), (61, 1), (72, 9))
WIDE = Limits(MODELS, experts=200, topk=32, groups=32, rows=9)
LIMITS = {
    "reference": WIDE,
    "torch": WIDE,
    "cpu": WIDE,
    # Interpreted, a row costs 20 ms; the kernel pads every row to 128 experts anyway.
    "triton": Limits(((128, 8), (128, 1), (72, 9)), experts=128, topk=8, groups=32, rows=3),
    # moe_fused_gate takes these groups only; without groups topk_sigmoid and biased_topk.
    "xpu": Limits(
        ((256, 8), (128, 4), (128, 8), (256, 16), (128, 1), (160, 1), (384, 1), (61, 1), (8, 1)),
        experts=0,
        topk=8,
        groups=1,
        rows=8,
        only_shapes=True,
        per_token_bias=False,
    ),
}
CHUNK = 2000  # examples; hypothesis remembers all that it drew


@dataclass
class Result:
    """tried: examples, each against all backends. mismatch: the smallest that failed, or None."""

    tried: int = 0
    mismatch: str | None = None


def search(
    backends: tuple[str, ...], count: int, seed: int, first: int = 0, device: str | None = None
) -> Result:
    """Try examples `first` ... of `seed` against each backend; stops at the first mismatch.

    device: where tensors are; None: "xpu" for the xpu backend, else "cpu".
    """
    result = Result()
    device = device or ("xpu" if backends == ("xpu",) else "cpu")
    limits = WIDE if device == "cuda" else LIMITS[backends[0]]
    everything = examples(limits, tuple(RELATIONS))

    def try_one(example: Example) -> None:
        if result.mismatch is None:
            result.tried += 1
        if result.tried % 100 == 0:
            dispatch.reset()  # every example makes plans of its own
        for backend in backends:
            try:
                check(example, backend, device)
            except Exception as error:
                result.mismatch = f"{backend}: {error}\n{example}"
                raise

    for start in range(first, first + count, CHUNK):
        run = settings(
            max_examples=min(CHUNK, first + count - start),
            deadline=None,
            database=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=tuple(HealthCheck),
        )(given(everything)(try_one))
        try:
            hypothesis.seed(seed + start)(run)()
        except Exception:
            if result.mismatch is None:
                raise
            break
    return result


@dataclass(frozen=True)
class Plan:
    """What is searched, in processes of `piece` examples, each of which takes seconds to start."""

    backends: tuple[str, ...]
    count: int
    environment: Mapping[str, str]
    piece: int = 2 * CHUNK


def run_all(plans: Sequence[Plan], seed: int, timeout_s: float, jobs: int) -> list[Result]:
    """Search, `jobs` processes at a time; raises if one of them dies. The same for any `jobs`."""
    pieces = [(plan, first) for plan in plans for first in range(0, plan.count, plan.piece)]
    with ThreadPoolExecutor(jobs) as pool:
        found = list(pool.map(lambda piece: _run_piece(*piece, seed, timeout_s), pieces))
    results = []
    for plan in plans:
        of_plan = [result for (each, _), result in zip(pieces, found, strict=True) if each is plan]
        wrong = [result.mismatch for result in of_plan if result.mismatch]
        results.append(Result(sum(each.tried for each in of_plan), "\n".join(wrong) or None))
    return results


def _run_piece(plan: Plan, first: int, seed: int, timeout_s: float) -> Result:
    count = min(plan.piece, plan.count - first)
    done = subprocess.run(
        [
            sys.executable,
            *("-m", "test_support.search", "--seed", str(seed), "--first", str(first)),
            *("--examples", str(count), "--backends", *plan.backends),
        ],
        env=plan.environment,
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    assert done.returncode == 0, f"the search of {plan.backends} died: {done.stderr[-3000:]}"
    return Result(**json.loads(done.stdout.splitlines()[-1]))


def summary(plans: Sequence[Plan], results: Sequence[Result], seed: int) -> str:
    """One line of counts, and a line per mismatch."""
    tried = sum(result.tried for result in results)
    wrong = [result.mismatch for result in results if result.mismatch]
    per_plan = ", ".join(
        f"{' and '.join(plan.backends)} {result.tried}"
        for plan, result in zip(plans, results, strict=True)
    )
    line = f"examples tried: {tried}, mismatches: {len(wrong)} (seed {seed}; {per_plan})"
    return "\n".join([line, *wrong])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backends", nargs="+", required=True, choices=LIMITS)
    parser.add_argument("--examples", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--first", type=int, default=0, help="skip so many examples of the seed")
    parser.add_argument("--device", help="of the tensors; default: cpu, for xpu alone xpu")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result = search(
        tuple(arguments.backends),
        arguments.examples,
        arguments.seed,
        arguments.first,
        arguments.device,
    )
    print(json.dumps(vars(result)))


if __name__ == "__main__":
    main()
