"""A real server with a fault in every process of it, and what came of it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.request import Request, urlopen

from plain_cpu.serving import Server, ServerError

from sglang_moe_ext import trace
from test_support.faults import STOCK, fault_environment

PROMPTS = tuple([2 + (37 * n + 11 * k) % 500 for k in range(5 + 7 * n)] for n in range(6))
NEW_TOKENS = 90  # two router calls each, so that a fault in call 1000 has its turn
REQUEST_TIMEOUT_S = 120


@dataclass
class Outcome:
    """What came of a server.

    tokens: its answers to PROMPTS; empty if it never was healthy.
    served_by: backends that routed, in order, as far as there is a trace; stock SGLang if the
        plugin was not live.
    said: what the plugin, or SGLang about it, wrote into the log, without time and process.
    ended: how the server ended by itself before it was healthy.
    """

    tokens: list[list[int]] = field(default_factory=list)
    served_by: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    ended: str = ""
    seconds: float = 0.0


def serve(
    model: Path,
    folder: Path,
    fault: str | None = None,
    *,
    strict: bool = False,
    new_tokens: int = NEW_TOKENS,
    environment: Mapping[str, str] | None = None,
) -> Outcome:
    """Start the server, ask it everything, stop it."""
    traces, log = folder / "trace", folder / "server.log"
    variables = {
        "SGLANG_MOE_EXT_TRACE": str(traces),
        "SGLANG_MOE_EXT_STRICT": str(int(strict)),
        "OMP_NUM_THREADS": "1",  # the model is tiny: two threads would wait for each other
        **(environment or {}),
        **(fault_environment(fault) if fault else {}),
    }
    outcome, started = Outcome(), time.monotonic()
    try:
        with Server(model, log, arguments=("--dtype", "float32"), environment=variables) as server:
            outcome.tokens = [generate(server, prompt, new_tokens) for prompt in PROMPTS]
            time.sleep(2 * trace.TOTALS_EVERY_S)
    except ServerError as error:
        outcome.ended = str(error).partition(" after ")[0]
    outcome.seconds = round(time.monotonic() - started, 1)
    text = log.read_text(encoding="utf-8", errors="replace")
    outcome.said = said(text)
    if all(path.is_file() for path in traces.glob("*")):  # not /dev/full, which never ends
        routers = [r for r in trace.read(traces) if r["what"] == "router" and r["calls"]]
        outcome.served_by = [r["backend"] for r in routers]
    if outcome.tokens and " is live: " not in text:
        outcome.served_by.append(STOCK)
    return outcome


def said(log: str) -> list[str]:
    """Lines about the plugin's state; the message with which a process ends comes once more."""
    lines = re.findall(r"(?:sglang-moe-ext\b.*|Failed to load plugin moe_ext.*)", log)
    return [line for line in lines if " is live: " not in line]


def generate(server: Server, prompt: list[int], new_tokens: int = NEW_TOKENS) -> list[int]:
    sampling = {"temperature": 0, "max_new_tokens": new_tokens, "ignore_eos": True}
    body = json.dumps({"input_ids": prompt, "sampling_params": sampling}).encode()
    request = Request(f"{server.url}/generate", body, {"Content-Type": "application/json"})
    with urlopen(request, timeout=REQUEST_TIMEOUT_S) as answer:
        tokens: list[int] = json.load(answer)["output_ids"]
    return tokens
