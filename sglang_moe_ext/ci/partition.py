"""Sharing test files out among machines so that all finish at about the same time."""

from __future__ import annotations

from collections.abc import Iterable

from sglang_moe_ext.ci.registration import Registration


def partition(registrations: Iterable[Registration], size: int) -> list[list[Registration]]:
    """Share files out by estimated seconds, the longest first, each to the emptiest share.

    The order of the input does not matter: equal estimates go by path, equal shares by number,
    so every machine computes the same shares, and the same as SGLang's `auto_partition`.
    Longest-first is at most 4/3 - 1/(3 size) times the best possible longest share
    (Graham, "Bounds on multiprocessing timing anomalies", 1969).
    """
    if size < 1:
        raise ValueError(f"size: found {size}, expected at least 1 share")
    shares: list[list[Registration]] = [[] for _ in range(size)]
    loads = [0.0] * size
    for registration in sorted(registrations, key=lambda r: (-r.est_time, r.path)):
        emptiest = loads.index(min(loads))
        shares[emptiest].append(registration)
        loads[emptiest] += registration.est_time
    return shares
