"""Nightly: the plugin beside every release is as the README's table says."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "releases"))

from compatibility import RESULTS, examine, patches_round_trip, problems, summary
from release_checks import ALL, package_of

from sglang_moe_ext.ci import register_cpu_ci, run_file

register_cpu_ci(est_time=720, suite="base-a-test-cpu", nightly=True)


@pytest.mark.parametrize("release", ALL)
def test_release(release: str) -> None:
    package_of(release)
    report = examine(release)
    assert problems(report) == []
    recorded = json.loads(RESULTS.read_text(encoding="utf-8"))[release]
    assert summary(report, patches=patches_round_trip(release)) == recorded


def test_stock_sglang_fails_the_same_checks() -> None:
    """What these releases do without us, so that the checks are known to see it."""
    package_of("0.5.16")
    report = examine("0.5.16", SGLANG_MOE_EXT="0")
    assert sorted(path.rpartition(".")[2] for path in report["not_live"]) == [
        "MoEGate",
        "_initialize_model",
        "_model_load_weights_direct",
        "_post_process_topk_ids",
        "biased_grouped_topk_gpu",
        "update_weights_from_tensor",
    ]
    for failure in ("F01", "F19", "F25", "F34"):
        assert any(name.startswith(failure) for name in report["cases"]["failed"]), failure
    unmasked = [why for why in report["ids"]["failed"].values() if why.startswith("padded rows")]
    assert len(unmasked) == 12  # three ways to map, two numbers of shared slots, 0 or 5 valid rows
    assert len(report["gate"]["failed"]) == report["gate"]["total"]


if __name__ == "__main__":
    run_file(__file__)
