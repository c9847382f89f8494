"""SGLANG_MOE_EXT_TRACE: what every process of a server decided, as JSON lines.

Each process writes `<pid>.jsonl`: a "process" line, a "decision" line at each first call of
a shape, and "totals" lines. SGLang ends its workers with SIGKILL, so the totals are
written whenever they changed since the last look, not only at exit: read the last one.
"""

from __future__ import annotations

import atexit
import json
import logging
import multiprocessing
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sglang_moe_ext import __version__, env, ledger, notice
from sglang_moe_ext.notice import describe

logger = logging.getLogger(__name__)

TOTALS_EVERY_S = 0.5
_started = False


def start(directory: Path) -> None:
    """Trace this process into `directory`; a second call changes nothing.

    Raises EnvError if nothing can be written there.
    """
    global _started
    if _started:
        return
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lines = _Lines(directory / f"{os.getpid()}.jsonl")
    except OSError as error:
        raise env.EnvError(
            f"{env.PREFIX}_TRACE is {str(directory)!r}, expected a directory that can be written: "
            f"{describe(error)}"
        ) from error
    _started = True
    lines.write(event="process", role=_role(), version=__version__, argv=sys.argv)
    for decision in ledger.decisions:
        _write_decision(lines, decision)
    ledger.listeners.append(lambda decision: _write_decision(lines, decision))
    totals = _Totals(lines)
    threading.Thread(target=totals.write_forever, name="moe-ext-trace", daemon=True).start()
    atexit.register(totals.write)


def read(directory: Path) -> Iterator[dict[str, Any]]:
    """One record per decision of every traced process, with its last totals."""
    for path in sorted(directory.glob("*.jsonl")):
        whole_lines = path.read_text(encoding="utf-8").rpartition("\n")[0]  # a killed process
        events = [json.loads(line) for line in whole_lines.splitlines()]
        decisions = [event for event in events if event["event"] == "decision"]
        totals = [event for event in events if event["event"] == "totals"]
        for index, decision in enumerate(decisions):
            last: dict[str, Any] = totals[-1] if totals else {}
            counts = last.get("counts", [])
            calls, tokens = counts[index] if index < len(counts) else (0, 0)
            role = last.get("role", decision["role"])
            yield {**decision, "role": role, "calls": calls, "tokens": tokens}


class _Lines:
    """A file of JSON lines. A disk that fails ends the trace, never a request."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", buffering=1, encoding="utf-8")

    def write(self, **fields: Any) -> None:
        if self._file.closed:
            return
        try:
            self._file.write(json.dumps({"pid": os.getpid(), **fields}) + "\n")
        except OSError as error:
            message = f"the trace {self._file.name} ends here: {describe(error)}"
            notice.once(logger.error, f"sglang-moe-ext: {message}")
            with suppress(OSError):
                self._file.close()


class _Totals:
    """Writes the counts of all decisions, in their order, when they have changed."""

    def __init__(self, lines: _Lines) -> None:
        self._lines = lines
        self._written: list[list[int]] = []

    def write_forever(self) -> None:
        wake = threading.Event()
        while not wake.wait(TOTALS_EVERY_S):
            self.write()

    def write(self) -> None:
        counts = [[decision.calls, decision.tokens] for decision in ledger.decisions]
        if counts != self._written:
            self._written = counts
            self._lines.write(event="totals", role=_role(), counts=counts)


def _write_decision(lines: _Lines, decision: ledger.Decision) -> None:
    fields = asdict(decision)
    fields.pop("calls")
    fields.pop("tokens")
    lines.write(event="decision", role=_role(), **fields)


def _role() -> str:
    """What this process calls itself: SGLang's process title, e.g. "sglang::scheduler_TP0"."""
    titles = sys.modules.get("setproctitle")
    title = str(titles.getproctitle()) if titles else ""
    return title if title.startswith("sglang::") else multiprocessing.current_process().name
