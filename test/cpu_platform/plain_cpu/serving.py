"""Start a real SGLang server on the plain CPU platform, talk to it, stop all of it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from urllib.error import URLError
from urllib.request import urlopen

import psutil

READY_TIMEOUT_S = 240
LOG_TAIL_LINES = 40


class ServerError(RuntimeError):
    """The server didn't come up; the message ends with the last lines of its log."""


class Server:
    """`with Server(model, log) as server:` runs `python -m sglang.launch_server`.

    model: checkpoint directory. log: file for its output.
    tp: tensor parallel size; each rank is bound to one core.
    arguments: further command-line arguments. environment: further variables.
    progress: called about once a second with the seconds waited.

    Raises FileNotFoundError for a missing model, ServerError if it isn't healthy in time.
    """

    def __init__(
        self,
        model: Path,
        log: Path,
        *,
        tp: int = 1,
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        progress: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        if not (model / "config.json").is_file():
            raise FileNotFoundError(
                f"no checkpoint at {model}: expected a directory with config.json "
                f"(scripts/make_checkpoint.py makes one)"
            )
        self.log = log
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._progress = progress
        self._command = [
            *(sys.executable, "-m", "sglang.launch_server", "--model-path", str(model)),
            *("--host", "127.0.0.1", "--port", str(self.port), "--tp", str(tp)),
            *("--device", "cpu", "--attention-backend", "torch_native"),
            # Without a limit the KV cache takes most of the memory.
            *("--disable-overlap-schedule", "--max-total-tokens", "4096"),
            *arguments,
        ]
        binding = {"SGLANG_CPU_OMP_THREADS_BIND": "|".join(map(str, range(tp)))} if tp > 1 else {}
        self._environment = {
            **os.environ,
            "SGLANG_PLATFORM": "plain_cpu",
            **binding,
            **(environment or {}),
        }

    def __enter__(self) -> Server:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            self._wait_until_healthy()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End the launcher and every process that it started."""
        with suppress(psutil.NoSuchProcess):
            family = psutil.Process(self.process.pid).children(recursive=True)
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(10)
            for process in family:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(family, timeout=10)
        self.process.kill()
        self.process.wait()

    def log_tail(self, lines: int = LOG_TAIL_LINES) -> str:
        return "\n".join(
            self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]
        )

    def _wait_until_healthy(self) -> None:
        started = time.monotonic()
        while (waited := time.monotonic() - started) < READY_TIMEOUT_S:
            if self.process.poll() is not None:
                raise ServerError(
                    f"the server ended with exit code {self.process.returncode} after "
                    f"{waited:.0f} s; its log {self.log} ends with\n{self.log_tail()}"
                )
            with suppress(URLError, OSError), urlopen(f"{self.url}/health_generate") as answer:
                if answer.status == 200:
                    return
            self._progress(waited)
            time.sleep(1)
        raise ServerError(
            f"the server was not healthy after {READY_TIMEOUT_S} s; its log {self.log} ends "
            f"with\n{self.log_tail()}"
        )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
