"""A worker is killed while it answers: the client hears of it, and the next start is clean."""

from __future__ import annotations

import http.client
import json
import math
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from plain_cpu.serving import Server
from test_support.fault_results import remember
from test_support.fault_server import generate, said

from sglang_moe_ext import trace
from sglang_moe_ext.ci import register_cpu_ci, run_file

register_cpu_ci(est_time=120, suite="base-a-test-cpu", nightly=True)

pytestmark = pytest.mark.server

ROOT = Path(__file__).parents[3]
PROMPT = [5, 6, 7, 8]
CLIENT_WAITS_S, SERVER_ENDS_S = 120, 120


def pieces(server: Server, new_tokens: int) -> Iterator[bytes]:
    """A streamed answer, line by line, for as long as it comes."""
    sampling = {"temperature": 0, "max_new_tokens": new_tokens, "ignore_eos": True}
    body = json.dumps({"input_ids": PROMPT, "sampling_params": sampling, "stream": True})
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=CLIENT_WAITS_S)
    connection.request("POST", "/generate", body, {"Content-Type": "application/json"})
    yield from connection.getresponse()


def test_killed_during_a_request(tmp_path: Path) -> None:
    model, traces = tmp_path / "checkpoint", tmp_path / "trace"
    subprocess.run([sys.executable, ROOT / "scripts" / "make_checkpoint.py", model], check=True)
    variables = {
        "SGLANG_MOE_EXT_TRACE": str(traces),
        "SGLANG_MOE_EXT_STRICT": "1",
        "OMP_NUM_THREADS": "1",
        "NUMBA_CACHE_DIR": str(tmp_path / "numba"),
    }
    arguments = ("--dtype", "float32")
    first = Server(model, tmp_path / "first.log", arguments=arguments, environment=variables)
    with first as server:
        healthy = generate(server, PROMPT)
        (worker,) = {r["pid"] for r in trace.read(traces) if r["what"] == "router"}
        received, killed = [], 0.0
        with suppress(http.client.HTTPException, OSError):
            for line in pieces(server, 3000):
                received.append(line)
                if len(received) == 10:
                    psutil.Process(worker).kill()
                    killed = time.monotonic()
        assert len(received) >= 10
        assert not any(line.startswith(b"data: [DONE]") for line in received)
        server.process.wait(SERVER_ENDS_S)
        seconds = time.monotonic() - killed
        assert server.process.returncode != 0
    assert said(first.log.read_text()) == []
    report = re.search(
        r"Subprocess scheduler_0 .* crashed with exit code -9", first.log.read_text()
    )
    assert report

    second = Server(model, tmp_path / "second.log", arguments=arguments, environment=variables)
    with second as server:
        assert generate(server, PROMPT) == healthy
    assert said(second.log.read_text()) == []
    workers = {r["pid"] for r in trace.read(traces) if r["what"] == "router"}
    assert len(workers) == 2
    remember(
        "SIGKILL of the worker during a request",
        f"stream and server ended within {math.ceil(seconds)} s; the next start served the same",
        [report[0]],
    )


if __name__ == "__main__":
    run_file(__file__)
