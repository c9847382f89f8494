"""Every failure class on a CUDA device: our compiled kernel, and SGLang's own routers there.

Each check goes through the operation and through the installed SGLang's select_experts, as in
conformance/test_failures.py.
"""

from __future__ import annotations

import pytest

from sglang_moe_ext.ci import register_cuda_ci, run_file

pytest.importorskip("sglang")
from test_support.conformance import Results, run_groups
from test_support.conformance_columns import missing
from test_support.conformance_record import assert_as_recorded, parameters

register_cuda_ci(est_time=120, suite="base-b-test-1-gpu-large")

ON_CUDA = ("CUDA", "SGLang on CUDA")


@pytest.fixture(scope="module")
def results() -> Results:
    here = [group for group in ON_CUDA if missing(group) is None]
    return run_groups(here, {}, timeout_s=580)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("check", "path", "column"), parameters(ON_CUDA))
def test_failure_does_not_happen(results: Results, check: str, path: str, column: str) -> None:
    assert_as_recorded(results, check, path, column)


if __name__ == "__main__":
    run_file(__file__)
