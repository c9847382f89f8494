"""Who decided what, and how often it ran since: the source of the trace and of `doctor`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class Decision:
    """One decision of a router or a gate, made at the first call of a shape on a device.

    what: "router" or "gate".
    shape: the layer shape as people write it, e.g. "256/8 g8 tg4" or "7168 -> 256".
    dtype: of the logits (router) or of the weight (gate).
    backend, detail: what runs, and why in a few words.
    rejected: the backends tried before and why each was not taken.
    selfcheck_ms: what comparing the backend with the reference cost; None if it was skipped.
    calls, tokens: calls and rows served since. A captured graph replays without Python, so
        its replays are not counted.
    """

    what: str
    shape: str
    device: str
    dtype: str
    backend: str
    detail: str
    rejected: tuple[tuple[str, str], ...] = ()
    selfcheck_ms: float | None = None
    calls: int = 0
    tokens: int = 0


decisions: list[Decision] = []
listeners: list[Callable[[Decision], None]] = []


def record(decision: Decision) -> Decision:
    decisions.append(decision)
    for listener in listeners:
        listener(decision)
    return decision
