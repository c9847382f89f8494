"""Run one suite of registered test files on the hardware that it is registered for."""

from __future__ import annotations

import argparse
import functools
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from sglang_moe_ext.ci.execute import run_test_file
from sglang_moe_ext.ci.partition import partition
from sglang_moe_ext.ci.registration import Registration
from sglang_moe_ext.ci.report import Run, describe, estimate_hints, file_name, summary, totals
from sglang_moe_ext.ci.scan import scan_tree
from sglang_moe_ext.ci.suites import known_suites

REPOSITORY = Path(__file__).resolve().parents[1]
EXIT_FAILED, EXIT_NOTHING_RAN = 1, 2
COUNT_DEVICES = {
    "amd": "torch.cuda.device_count() if torch.version.hip else 0",
    "cuda": "torch.cuda.device_count() if torch.version.cuda else 0",
    "xpu": "torch.xpu.device_count()",
}

EXAMPLES = """
examples:
  the CPU suite:
    python scripts/run_suite.py --hw cpu --suite base-a-test-cpu
  the XPU suite on an Intel GPU, or without one on the simulated device:
    python scripts/run_suite.py --hw xpu --suite stage-b-test-1-gpu-xpu
    python scripts/run_suite.py --hw xpu --suite stage-b-test-1-gpu-xpu --simulated
  what the second of three machines would run:
    python scripts/run_suite.py --hw cpu --suite base-a-test-cpu \\
        --auto-partition-id 1 --auto-partition-size 3 --list

exit code: 0 all passed; 1 a test failed; 2 nothing ran (bad registrations, no such suite,
no such hardware, every test skipped). The last line is always "N passed, N failed", counting
tests, with ", N skipped" if there were any.
"""


say = functools.partial(print, flush=True)  # progress must be seen when it is piped


class NothingToRunError(Exception):
    """Why the suite cannot be run; printed as it is."""


def main() -> int:
    arguments = parse_arguments()
    # So that `finally` clauses stop what is running when CI cancels the job.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    runs: list[Run] = []
    try:
        share, disabled = select(arguments)
        for registration in disabled:
            say(f"disabled: {file_name(registration)}: {registration.disabled}")
        if arguments.list:
            list_files(share)
            return 0
        runs = run_all(share, arguments, prepare_environment(arguments))
        # A simulated run says nothing about estimates, which are for the hardware.
        hints = [] if arguments.simulated else estimate_hints(runs)
        for line in ("", *summary(runs), *hints):
            say(line)
        if all(run.outcome.status == "all skipped" for run in runs):
            raise NothingToRunError(f"every test was skipped: nothing ran on {arguments.hw}")
        exit_code = EXIT_FAILED if any(run.outcome.failed for run in runs) else 0
    except NothingToRunError as error:
        say(f"run_suite: {error}", file=sys.stderr)
        exit_code = EXIT_NOTHING_RAN
    if arguments.simulated:
        say("SIMULATED: no XPU hardware took part")
    say(totals([run.outcome for run in runs]))
    return exit_code


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--hw", required=True, choices=["cpu", *COUNT_DEVICES])
    parser.add_argument("--suite", required=True, help="suite name, as in the registrations")
    parser.add_argument("--nightly", action="store_true", help="the files with nightly=True")
    parser.add_argument(
        "--auto-partition-id", type=int, metavar="I", help="run share I (from 0) of N only"
    )
    parser.add_argument(
        "--auto-partition-size", type=int, metavar="N", help="number of shares of about equal time"
    )
    parser.add_argument("--list", action="store_true", help="print the files and run nothing")
    parser.add_argument(
        "--retries",
        type=int,
        default=0,
        metavar="N",
        help="run a failed file up to N more times; the last attempt counts (default: 0)",
    )
    parser.add_argument(
        "--timeout-per-file",
        type=float,
        metavar="S",
        help="seconds after which a file is stopped, and all its processes (default: 1200, or "
        "twice a longer file's estimate)",
    )
    parser.add_argument(
        "--simulated",
        action="store_true",
        help="run an XPU suite on the simulated device of test/sim_xpu: dispatch, arguments and "
        "errors are tested, no kernel and no speed",
    )
    parser.add_argument(
        "--root",
        type=Path,
        default=REPOSITORY / "test" / "registered",
        metavar="DIR",
        help="folder of the registered files (default: test/registered)",
    )
    arguments = parser.parse_args()
    share, size = arguments.auto_partition_id, arguments.auto_partition_size
    if (share is None) != (size is None):
        parser.error("--auto-partition-id and --auto-partition-size go together")
    if size is not None and not 0 <= share < size:
        parser.error(f"--auto-partition-id: found {share}, expected 0 to {size - 1}")
    if arguments.retries < 0:
        parser.error(f"--retries: found {arguments.retries}, expected 0 or more")
    if arguments.timeout_per_file is not None and not arguments.timeout_per_file > 0:
        parser.error(f"--timeout-per-file: found {arguments.timeout_per_file}, expected seconds")
    if arguments.simulated and arguments.hw != "xpu":
        parser.error("--simulated: only --hw xpu has a simulated device")
    if not arguments.root.is_dir():
        parser.error(f"--root: {arguments.root} is not a folder")
    return arguments


def select(arguments: argparse.Namespace) -> tuple[list[Registration], list[Registration]]:
    """This machine's share of the suite, the longest first, and the suite's disabled files."""
    registrations, problems = scan_tree(arguments.root, known_suites())
    if problems:
        listing = "\n  ".join(str(problem) for problem in problems)
        raise NothingToRunError(f"{len(problems)} problem(s) with registrations:\n  {listing}")
    on_hardware = [r for r in registrations if r.backend == arguments.hw]
    suite = [r for r in on_hardware if (r.suite, r.nightly) == (arguments.suite, arguments.nightly)]
    enabled = [r for r in suite if r.disabled is None]
    if not enabled:
        present = Counter(f"{r.suite}{' --nightly' * r.nightly}" for r in on_hardware)
        listing = ", ".join(f"{suite} ({count})" for suite, count in sorted(present.items()))
        raise NothingToRunError(
            f"no enabled file is registered for {arguments.hw} {arguments.suite}"
            f"{' --nightly' * arguments.nightly}; {arguments.hw} has {listing or 'no suite'}"
        )
    share = partition(enabled, arguments.auto_partition_size or 1)[arguments.auto_partition_id or 0]
    if not share:
        raise NothingToRunError(
            f"share {arguments.auto_partition_id} of {arguments.auto_partition_size} is empty: "
            f"the suite has {len(enabled)} file(s), ask for at most as many shares"
        )
    return share, [r for r in suite if r.disabled is not None]


def prepare_environment(arguments: argparse.Namespace) -> Mapping[str, str]:
    """The test files' environment, in which the hardware that was asked for has been seen."""
    environment = dict(os.environ)
    if arguments.simulated:
        sys.path.insert(0, str(REPOSITORY / "test"))
        from sim_xpu import sim_environment

        environment = sim_environment()
        say("SIMULATED: running on the simulated XPU of test/sim_xpu")
    if arguments.hw == "cpu":
        return environment
    count = COUNT_DEVICES[arguments.hw]
    probe = subprocess.run(
        [sys.executable, "-c", f"import torch; print({count})"],
        env=environment,
        capture_output=True,
        text=True,
    )
    if probe.returncode:
        raise NothingToRunError(f"cannot look for {arguments.hw} devices:\n{probe.stderr.strip()}")
    if probe.stdout.split()[-1] == "0":
        simulate = ", or pass --simulated" if arguments.hw == "xpu" else ""
        raise NothingToRunError(
            f"no {arguments.hw} device here ({count} is 0); run this suite on a machine that "
            f"has one, with a torch built for it{simulate}"
        )
    return environment


def run_all(
    share: list[Registration], arguments: argparse.Namespace, environment: Mapping[str, str]
) -> list[Run]:
    start = time.monotonic()
    runs = []
    for number, registration in enumerate(share, 1):
        for attempt in range(1, arguments.retries + 2):
            elapsed = time.monotonic() - start
            again = f", attempt {attempt} of {arguments.retries + 1}" if attempt > 1 else ""
            say(
                f"[{number}/{len(share)}, {elapsed:.0f} s] {file_name(registration)} "
                f"(estimated {registration.est_time:g} s{again})"
            )
            limit = arguments.timeout_per_file or max(1200, 2 * registration.est_time)
            outcome = run_test_file(registration.path, limit, environment)
            if outcome.failed:
                say(outcome.output)
            say(f"  {describe(outcome)}, {outcome.seconds:.1f} s")
            if not outcome.failed:
                break
        runs.append(Run(registration, outcome, attempt))
    return runs


def list_files(share: list[Registration]) -> None:
    for registration in share:
        say(f"{registration.est_time:6g} s  {file_name(registration)}")
    total = sum(registration.est_time for registration in share)
    say(f"{total:6g} s  estimated for {len(share)} file(s)")


if __name__ == "__main__":
    raise SystemExit(main())
