"""What every check yields."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """One line of the report; status is "ok", "warn" or "fail", and only "fail" is a verdict."""

    name: str
    status: str
    found: str
    remedy: str = ""
