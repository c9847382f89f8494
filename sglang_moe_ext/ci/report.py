"""What a suite run prints: one line per file, measured against estimated time, the totals."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sglang_moe_ext.ci.execute import Outcome
from sglang_moe_ext.ci.registration import Registration

# An estimate gets a hint when it is off by more than both; below, sharing out does not suffer.
FAR_OFF_FACTOR, FAR_OFF_S = 2.0, 2.0


@dataclass(frozen=True)
class Run:
    """A file's last attempt, and how many there were."""

    registration: Registration
    outcome: Outcome
    attempts: int


def file_name(registration: Registration) -> str:
    """As one would type it here."""
    return os.path.relpath(registration.path)


def describe(outcome: Outcome) -> str:
    text = f"{outcome.status}: {totals([outcome])}"
    remark = outcome.fault or outcome.skip_reason
    return f"{text} ({remark})" if remark else text


def totals(outcomes: Sequence[Outcome]) -> str:
    """The line that CI reads: "N passed, N failed", and ", N skipped" if there were any."""
    passed, failed, skipped = (
        sum(getattr(outcome, verdict) for outcome in outcomes)
        for verdict in ("passed", "failed", "skipped")
    )
    return f"{passed} passed, {failed} failed" + (f", {skipped} skipped" if skipped else "")


def summary(runs: Sequence[Run]) -> Iterator[str]:
    """A table of all files, failed ones last."""
    yield f"{'measured':>10} {'estimated':>10}"
    for run in sorted(runs, key=lambda run: bool(run.outcome.failed)):
        again = f", attempt {run.attempts}" if run.attempts > 1 else ""
        yield (
            f"{run.outcome.seconds:8.1f} s {run.registration.est_time:8g} s  "
            f"{file_name(run.registration)}: {describe(run.outcome)}{again}"
        )
    measured = sum(run.outcome.seconds for run in runs)
    estimated = sum(run.registration.est_time for run in runs)
    yield f"{measured:8.1f} s {estimated:8g} s  {len(runs)} file(s)"


def estimate_hints(runs: Sequence[Run]) -> Iterator[str]:
    """One line for each passing file whose est_time would mislead the sharing out."""
    for run in runs:
        estimated, measured = run.registration.est_time, run.outcome.seconds
        low, high = sorted((estimated, measured))
        far_off = high > FAR_OFF_FACTOR * low and high - low > FAR_OFF_S
        if far_off and run.outcome.status == "passed":
            yield (
                f"hint: {file_name(run.registration)} took {measured:.1f} s: "
                f"est_time={estimated:g} should be {math.ceil(measured)}"
            )
