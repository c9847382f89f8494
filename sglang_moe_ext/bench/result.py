"""What became of one router on one shape and number of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

TIMED, WRONG, FAILED, SKIPPED = "timed", "WRONG", "failed", "skipped"


class Result(NamedTuple):
    """One cell of the table.

    role: ours, peer or floor.
    measure: call, lap or graph; see timing.py.
    verdict: TIMED; WRONG: answers that are not right, so no time; FAILED: it raised;
        SKIPPED: it is not there, or does not serve this shape.
    detail: why it is not timed.
    timing: quantiles in microseconds per call, if it is.
    """

    shape: str
    router: str
    role: str
    tokens: int
    measure: str
    verdict: str
    detail: str = ""
    timing: Mapping[str, float] | None = None

    @property
    def median_us(self) -> float:
        return self.timing["median_us"] if self.timing else float("nan")
