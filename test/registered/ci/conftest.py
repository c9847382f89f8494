"""SGLang's own scanner, to compare ours with, and made folders to run as suites."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

from sglang_moe_ext.ci.registration import Registration
from sglang_moe_ext.ci.scan import Scan, scan_file

RUN_SUITE = Path(__file__).resolve().parents[3] / "scripts" / "run_suite.py"


@pytest.fixture(scope="session")
def sglang_scanner() -> ModuleType:
    """Loaded from its file, for it needs nothing else of SGLang."""
    package = importlib.util.find_spec("sglang")
    if package is None or package.origin is None:
        pytest.skip("SGLang is not installed")
    path = Path(package.origin).parent / "test" / "ci" / "ci_register.py"
    spec = importlib.util.spec_from_file_location("sglang_ci_register", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def collect_like_sglang(sglang_scanner: ModuleType) -> Callable[[list[Path]], list[Registration]]:
    """What SGLang collects, as ours but without lines, which it does not keep."""

    def collect(paths: list[Path]) -> list[Registration]:
        return [
            Registration(
                path=found.filename,
                line=0,
                backend=found.backend.name.lower(),
                est_time=found.est_time,
                suite=found.effective_suite,
                nightly=found.nightly,
                disabled=found.disabled,
            )
            for found in sglang_scanner.collect_tests([str(path) for path in paths])
        ]

    return collect


@pytest.fixture(scope="session")
def scan_both(
    collect_like_sglang: Callable[[list[Path]], list[Registration]],
) -> Callable[[Path], Scan]:
    """Our scan of a file, once both refuse the file or both collect the same from it."""

    def scan(path: Path) -> Scan:
        ours = scan_file(path, {})
        refusals = [problem for problem in ours.problems if not problem.silent]
        theirs, error = [], None
        try:
            theirs = collect_like_sglang([path])
        except (ValueError, SyntaxError) as refusal:
            error = refusal
        source = path.read_text(encoding="utf-8")
        assert bool(refusals) == bool(error), f"ours: {refusals}, SGLang's: {error}\n{source}"
        assert error or [replace(r, line=0) for r in ours.registrations] == theirs, source
        return ours

    return scan


class SuiteRun(NamedTuple):
    exit_code: int
    stdout: str
    stderr: str

    @property
    def totals(self) -> str:
        line = self.stdout.splitlines()[-1]
        assert re.fullmatch(r"\d+ passed, \d+ failed(, \d+ skipped)?", line), self.stdout
        return line

    def summary_of(self, name: str) -> str:
        table = self.stdout.partition("measured  estimated")[2]
        (line,) = [line for line in table.splitlines() if f" {name}: " in line]
        return line


class MadeSuite:
    """A folder of test files, and scripts/run_suite.py to run it with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.command = [sys.executable, str(RUN_SUITE), "--root", "."]

    def add(
        self,
        name: str,
        tests: str = "def test_it(): pass",
        registration: str = 'register_cpu_ci(est_time=1, suite="base-a-test-cpu")',
    ) -> Path:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(
            "import os, signal, subprocess, time\n"
            "from pathlib import Path\n"
            "import pytest\n"
            "from sglang_moe_ext.ci import register_cpu_ci, register_xpu_ci, run_file\n"
            f"{registration}\n"
            f"{tests}\n"
            'if __name__ == "__main__":\n'
            "    run_file(__file__)\n",
            encoding="utf-8",
        )
        return path

    def run(self, *arguments: str) -> SuiteRun:
        process = subprocess.run(
            [*self.command, *arguments],
            cwd=self.folder,
            capture_output=True,
            text=True,
            # The made files need no plugin, and start twice as fast without.
            env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        )
        return SuiteRun(process.returncode, process.stdout, process.stderr)


@pytest.fixture
def suite(tmp_path: Path) -> MadeSuite:
    return MadeSuite(tmp_path)
