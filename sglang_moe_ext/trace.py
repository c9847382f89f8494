"""SGLANG_MOE_EXT_TRACE: what every process of a server decided, as JSON lines.

Each process writes `<pid>.jsonl`: a "process" line, a "decision" line at each first call of
a shape, and "totals" lines. SGLang ends its workers with SIGKILL, so the totals are
written whenever they changed since the last look, not only at exit: read the last one.
"""

from __future__ import annotations

import atexit
import json
import multiprocessing
import os
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from sglang_moe_ext import __version__, ledger

TOTALS_EVERY_S = 0.5
_started = False


def start(directory: Path) -> None:
    """Trace this process into `directory`; a second call changes nothing."""
    global _started
    if _started:
        return
    _started = True
    directory.mkdir(parents=True, exist_ok=True)
    file = (directory / f"{os.getpid()}.jsonl").open("a", buffering=1, encoding="utf-8")
    _write(file, event="process", role=_role(), version=__version__, argv=sys.argv)
    for decision in ledger.decisions:
        _write_decision(file, decision)
    ledger.listeners.append(lambda decision: _write_decision(file, decision))
    totals = _Totals(file)
    threading.Thread(target=totals.write_forever, name="moe-ext-trace", daemon=True).start()
    atexit.register(totals.write)


def read(directory: Path) -> Iterator[dict[str, Any]]:
    """One record per decision of every traced process, with its last totals."""
    for path in sorted(directory.glob("*.jsonl")):
        events = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        decisions = [event for event in events if event["event"] == "decision"]
        totals = [event for event in events if event["event"] == "totals"]
        for index, decision in enumerate(decisions):
            last: dict[str, Any] = totals[-1] if totals else {}
            counts = last.get("counts", [])
            calls, tokens = counts[index] if index < len(counts) else (0, 0)
            role = last.get("role", decision["role"])
            yield {**decision, "role": role, "calls": calls, "tokens": tokens}


class _Totals:
    """Writes the counts of all decisions, in their order, when they have changed."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._written: list[list[int]] = []

    def write_forever(self) -> None:
        wake = threading.Event()
        while not wake.wait(TOTALS_EVERY_S):
            self.write()

    def write(self) -> None:
        counts = [[decision.calls, decision.tokens] for decision in ledger.decisions]
        if counts != self._written:
            self._written = counts
            _write(self._file, event="totals", role=_role(), counts=counts)


def _write_decision(file: TextIO, decision: ledger.Decision) -> None:
    fields = asdict(decision)
    fields.pop("calls")
    fields.pop("tokens")
    _write(file, event="decision", role=_role(), **fields)


def _write(file: TextIO, **fields: Any) -> None:
    file.write(json.dumps({"pid": os.getpid(), **fields}) + "\n")


def _role() -> str:
    """What this process calls itself: SGLang's process title, e.g. "sglang::scheduler_TP0"."""
    titles = sys.modules.get("setproctitle")
    title = str(titles.getproctitle()) if titles else ""
    return title if title.startswith("sglang::") else multiprocessing.current_process().name
