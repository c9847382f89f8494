"""A soak: many clients stream answers from a served checkpoint, and every token is checked.

Each prompt is answered alone first; under load the same tokens must come (float32, greedy).
Every token that went through the model is accounted for in the plugin's trace: per layer the
prompt without its cached prefix, and every new token but the last, which nobody reads.
"""

from __future__ import annotations

import http.client
import itertools
import json
import random
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from plain_cpu.serving import Server

from sglang_moe_ext import trace

PROMPTS = 96  # more tokens than the cache holds, so prefixes are found and evicted
LONGEST, MOST_NEW = 160, 48  # tokens
ARGUMENTS = ("--dtype", "float32", "--chunked-prefill-size", "64")
REQUEST_TIMEOUT_S = 120
PROGRESS_EVERY_S = 5
SAMPLE_EVERY_S = 1
WARM_UP_SHARE = 0.2  # of the soak, before memory is judged
LAYERS = 2  # mixture-of-experts layers of the made checkpoint
FIRST_TOKEN, VOCABULARY = 2, 512  # no special tokens in prompts


@dataclass(frozen=True)
class Answer:
    """One streamed answer; counts as the API reports them."""

    tokens: list[int]
    pieces: int
    prompt_tokens: int
    cached_tokens: int


@dataclass
class Summary:
    """What came of a soak.

    alone, requests: answers one by one, and under load; the tokens are of both.
    wrong: answers with other tokens than alone; dropped: errors and answers cut short.
    routed, expected: rows that the trace counted, and that the answers account for.
    memory: of the worker in MiB, after the warm-up, at the end, and its slope per hour. Private
        pages only: the kernel takes those of libraries away and brings them back as it likes.
    """

    seconds: float = 0.0
    clients: int = 0
    alone: int = 0
    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    new_tokens: int = 0
    wrong: int = 0
    dropped: int = 0
    routed: int = 0
    expected: int = 0
    memory_first_mib: float = 0.0
    memory_last_mib: float = 0.0
    memory_mib_per_hour: float = 0.0
    backends: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def count(self, answer: Answer) -> None:
        self.requests += 1
        self.prompt_tokens += answer.prompt_tokens
        self.cached_tokens += answer.cached_tokens
        self.new_tokens += len(answer.tokens)
        uncached = answer.prompt_tokens - answer.cached_tokens
        self.expected += LAYERS * (uncached + len(answer.tokens) - 1)

    def as_dict(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if key != "errors"}


def soak(
    model: Path,
    folder: Path,
    *,
    seconds: float,
    clients: int = 16,
    prompts: int = PROMPTS,
    most_requests: int = 1_000_000,
    say: Callable[[str], None] = print,
) -> Summary:
    """Serve `model`, answer every prompt alone, then for `seconds` with all clients at once."""
    traces = folder / "trace"
    environment = {
        "SGLANG_MOE_EXT_TRACE": str(traces),
        "SGLANG_MOE_EXT_STRICT": "1",
        # The model is tiny: two threads only wait for each other, for seconds on a busy machine.
        "OMP_NUM_THREADS": "1",
    }
    server = Server(model, folder / "server.log", arguments=ARGUMENTS, environment=environment)
    with server:
        before = _routed(traces)
        summary = Summary(clients=clients)
        right = []
        for number in range(prompts):
            answer = stream(server.port, number)
            summary.count(answer)
            right.append(answer.tokens)
        summary.alone, summary.requests = summary.requests, 0
        say(f"{summary.alone} prompts answered one by one")
        _load(server, right, summary, seconds, most_requests, traces, say)
        after = _routed(traces)
    summary.routed = sum(after.values()) - sum(before.values())
    summary.backends = sorted(after)
    return summary


def check(summary: Summary) -> list[str]:
    """What is wrong with a soak, beside its memory; empty if nothing."""
    found = summary.errors[:5]
    if summary.wrong or summary.dropped:
        found.append(f"{summary.wrong} wrong, {summary.dropped} dropped")
    if summary.routed != summary.expected:
        found.append(f"the trace has {summary.routed} rows, expected {summary.expected}")
    return found


def stream(port: int, number: int) -> Answer:
    """The answer to prompt `number`, piece by piece. Raises if it isn't whole."""
    prompt, new_tokens = prompt_of(number)
    sampling = {"temperature": 0, "max_new_tokens": new_tokens, "ignore_eos": True}
    body = {"input_ids": prompt, "sampling_params": sampling, "stream": True}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=REQUEST_TIMEOUT_S)
    try:
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/generate", json.dumps(body), headers)
        response = connection.getresponse()
        if response.status != 200:
            raise RuntimeError(f"status {response.status}: {response.read()[:200]!r}")
        pieces, last, done = 0, {}, False
        for line in response:
            if line.startswith(b"data: [DONE]"):
                done = True
            elif line.startswith(b"data: "):
                pieces, last = pieces + 1, json.loads(line[6:])
    finally:
        connection.close()
    if not done or "meta_info" not in last:
        raise RuntimeError(f"the stream ended after {pieces} pieces: {str(last)[:200]}")
    meta, tokens = last["meta_info"], last["output_ids"]
    if len(tokens) != new_tokens or meta["completion_tokens"] != new_tokens:
        raise RuntimeError(f"{len(tokens)} tokens came, expected {new_tokens}")
    return Answer(tokens, pieces, meta["prompt_tokens"], meta["cached_tokens"])


def prompt_of(number: int) -> tuple[list[int], int]:
    """Token ids and how many new ones to ask for; a third begin like another prompt."""
    source = random.Random(number)
    length, new_tokens = source.randint(1, LONGEST), source.randint(1, MOST_NEW)
    stem = random.Random(number // 3 if number % 3 else number + PROMPTS)
    return [stem.randrange(FIRST_TOKEN, VOCABULARY) for _ in range(length)], new_tokens


def _load(
    server: Server,
    right: list[list[int]],
    summary: Summary,
    seconds: float,
    most_requests: int,
    traces: Path,
    say: Callable[[str], None],
) -> None:
    numbers, lock, over = itertools.count(), threading.Lock(), threading.Event()
    order = random.Random(0)
    worker = _worker(traces)
    samples: list[tuple[float, float]] = []
    started = time.monotonic()

    def ask_until_over() -> None:
        while not over.is_set() and next(numbers) < most_requests:
            with lock:
                number = order.randrange(len(right))
            try:
                answer, error = stream(server.port, number), ""
            except Exception as failure:  # dropped, whatever the reason
                answer, error = None, f"prompt {number}: {failure!r}"
            with lock:
                if answer is None:
                    summary.dropped += 1
                    summary.errors.append(error)
                    continue
                summary.count(answer)
                if answer.tokens != right[number]:
                    summary.wrong += 1
                    found = f"{answer.tokens}, expected {right[number]}"
                    summary.errors.append(f"prompt {number}: {found}")

    with ThreadPoolExecutor(clients := summary.clients) as pool:
        tasks = [pool.submit(ask_until_over) for _ in range(clients)]
        said = 0.0
        try:
            while (elapsed := time.monotonic() - started) < seconds and not all(
                task.done() for task in tasks
            ):
                samples.append((elapsed, _private_mib(worker)))
                if elapsed - said >= PROGRESS_EVERY_S:
                    said = elapsed
                    say(
                        f"{elapsed:6.0f} s  {summary.requests} answers  {summary.new_tokens} tokens"
                        f"  {summary.wrong} wrong  {summary.dropped} dropped"
                        f"  {samples[-1][1]:.0f} MiB"
                    )
                over.wait(SAMPLE_EVERY_S)
        finally:
            over.set()
        for task in tasks:
            task.result()
    summary.seconds = round(time.monotonic() - started, 1)
    warm = [sample for sample in samples if sample[0] >= WARM_UP_SHARE * seconds]
    summary.memory_first_mib, summary.memory_last_mib = (round(warm[i][1], 1) for i in (0, -1))
    summary.memory_mib_per_hour = round(3600 * _slope(warm), 1)


def _private_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    kib = dict(re.findall(r"^(RssAnon|VmSwap):\s+(\d+) kB$", status, re.MULTILINE))
    return (int(kib["RssAnon"]) + int(kib["VmSwap"])) / 1024


def _slope(samples: list[tuple[float, float]]) -> float:
    """Least squares, per second."""
    times, values = zip(*samples, strict=True)
    middle, mean = sum(times) / len(times), sum(values) / len(values)
    spread = sum((t - middle) ** 2 for t in times)
    return sum((t - middle) * (v - mean) for t, v in samples) / spread if spread else 0.0


def _routed(traces: Path) -> dict[str, int]:
    """Rows that each backend routed, when the trace has come to rest."""
    counts: dict[str, int] = {}
    while True:
        time.sleep(2 * trace.TOTALS_EVERY_S)
        before, counts = counts, {}
        for record in trace.read(traces):
            if record["what"] == "router":
                backend = record["backend"]
                counts[backend] = counts.get(backend, 0) + record["tokens"]
        if counts and counts == before:
            return counts


def _worker(traces: Path) -> int:
    """The process that routes."""
    (pid,) = {r["pid"] for r in trace.read(traces) if r["what"] == "router"}
    return int(pid)
