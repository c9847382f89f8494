"""Registering test files with SGLang's CI, on every release and without SGLang installed.

A registration is read from the syntax tree and never executed: only a bare call with
literal arguments, as a statement of its own at module level, counts. A test file is

    from sglang_moe_ext.ci import register_cpu_ci, register_xpu_ci, run_file

    register_cpu_ci(est_time=3, suite="base-a-test-cpu")
    register_xpu_ci(est_time=5, suite="stage-b-test-1-gpu-xpu")
    ...
    if __name__ == "__main__":
        run_file(__file__)

`scan` reads and checks such files, `partition` shares them out, `scripts/run_suite.py` runs
them. The same files are collected by SGLang's own `test/run_suite.py`.
"""

from __future__ import annotations

import sys
from typing import NoReturn

__all__ = [
    "register_amd_ci",
    "register_cpu_ci",
    "register_cuda_ci",
    "register_mlx_ci",
    "register_mps_ci",
    "register_musa_ci",
    "register_npu_ci",
    "register_ppu_ci",
    "register_xpu_ci",
    "run_file",
]


def _marker(
    est_time: float,
    suite: str | None = None,
    nightly: bool = False,
    disabled: str | None = None,
    *,
    stage: str | None = None,
    runner_config: str | None = None,
) -> None:
    """Register this file with one backend's CI. Does nothing when it runs.

    est_time: seconds that the whole file takes, for sharing files out among machines.
    suite: name of the suite, or else `stage` and `runner_config`, which together name the
        suite "{stage}-test-{runner_config}".
    nightly: run at night only.
    disabled: why the file is not to be run on this backend; None runs it.

    Signature of `sglang.test.ci.ci_register` at SGLang 0.5.23.
    """


# One function under nine names: the scanners tell backends apart by the name that is called.
register_amd_ci = _marker
register_cpu_ci = _marker
register_cuda_ci = _marker
register_mlx_ci = _marker
register_mps_ci = _marker
register_musa_ci = _marker
register_npu_ci = _marker
register_ppu_ci = _marker
register_xpu_ci = _marker


def run_file(path: str) -> NoReturn:
    """Run pytest on one test file and exit with its code; call it as `run_file(__file__)`.

    Command-line arguments go to pytest. SGLang's runner passes "-f" (unittest's "stop at the
    first failure"), which pytest does not know: it is dropped. A file in which no test was
    collected exits with pytest's code 5.
    """
    import pytest

    arguments = [argument for argument in sys.argv[1:] if argument != "-f"]
    raise SystemExit(pytest.main([path, *arguments]))
