"""Routed ids reach the experts finished exactly once: physical, and -1 in padded rows.

SGLang up to 0.5.9 leaves that to the router, 0.5.10 to 0.5.22 forget it on XPU and CPU, and
0.5.23 does it. What the real releases do is in the compatibility suite.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from sim_xpu.run_cases import run_cases
from test_support.stub_host import OURS, STOCK, StubHost
from torch import Tensor

from sglang_moe_ext import env, router
from sglang_moe_ext.ci import register_cpu_ci, run_file
from sglang_moe_ext.router import make_mapping_router, make_post_processor

register_cpu_ci(est_time=25, suite="base-a-test-cpu")

# Logical expert -> physical; int64 as SGLang's tables are. Indexed with -1 it would say 11.
TABLE = torch.tensor([3, 0, 9, 1, 4, 8, 2, 11])


@pytest.fixture(autouse=True)
def fresh_settings() -> Iterator[None]:
    env.settings.cache_clear()
    yield
    env.settings.cache_clear()


def to_physical(ids: Tensor, table: Any) -> Tensor:
    return ids if table is None else table[ids]


def process(original: Any, ids: Tensor, shared: int = 0, grouped: bool = True, **more: Any) -> Any:
    config = SimpleNamespace(num_fused_shared_experts=shared, use_grouped_topk=grouped)
    post_process = make_post_processor(original, to_physical)
    weights = torch.ones(ids.shape)
    return post_process(ids, weights, config, torch.zeros(ids.shape[0], 8), 0, **more)


def gpu_only(ids: Tensor, weights: Tensor, *args: Any, **kwargs: Any) -> Any:
    return ids, weights, ids


def gpu_only_without_recorder(ids: Tensor, weights: Tensor, *args: Any, **kwargs: Any) -> Any:
    return ids, weights


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("valid", [0, 1, 3])
def test_f36_padded_rows_are_minus_one_and_others_physical(valid: int, dtype: torch.dtype) -> None:
    ids = torch.tensor([[0, 2], [5, 1], [7, 4]], dtype=dtype)
    options = {"num_token_non_padded": torch.tensor(valid), "expert_location_dispatch_info": TABLE}
    found, _, recorded = process(gpu_only, ids, **options)
    expected = TABLE[ids.long()].to(dtype)
    expected[valid:] = -1
    assert found.dtype == dtype
    assert torch.equal(found, expected)
    assert torch.equal(recorded, expected)
    assert ids.tolist() == [[0, 2], [5, 1], [7, 4]]


def test_f39_shared_slots_are_not_remapped_nor_recorded() -> None:
    ids = torch.tensor([[0, 2, 8, 9], [7, 4, 8, 9]], dtype=torch.int32)
    options = {"num_token_non_padded": torch.tensor(1), "expert_location_dispatch_info": TABLE}
    found, _, recorded = process(gpu_only, ids, shared=2, **options)
    assert found.tolist() == [[3, 9, 8, 9], [-1, -1, -1, -1]]
    assert recorded.tolist() == [[3, 9], [-1, -1]]


def test_the_recorder_is_given_back_only_where_sglang_has_one() -> None:
    ids = torch.tensor([[0, 2]])
    found = process(gpu_only_without_recorder, ids, expert_location_dispatch_info=TABLE)
    assert [each.tolist() for each in found] == [[[3, 9]], [[1.0, 1.0]]]


def test_f39_ids_that_sglang_mapped_are_not_mapped_again() -> None:
    def maps(ids: Tensor, weights: Tensor, *args: Any, **kwargs: Any) -> Any:
        return TABLE[ids], weights, TABLE[ids]

    found, _, _ = process(maps, torch.tensor([[0, 2]]), expert_location_dispatch_info=TABLE)
    assert found.tolist() == [[3, 9]]


def test_ungrouped_routing_is_left_alone() -> None:
    ids = torch.tensor([[0, 2]])
    found, _, _ = process(gpu_only, ids, grouped=False, expert_location_dispatch_info=TABLE)
    assert found is ids


@pytest.mark.parametrize(
    ("variable", "value"), [("DEVICES", "xpu"), ("BACKEND", "upstream")], ids=["device", "backend"]
)
def test_what_is_left_to_sglang_is_left_alone(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"SGLANG_MOE_EXT_{variable}", value)
    ids = torch.tensor([[0, 2]])
    found, _, _ = process(gpu_only, ids, expert_location_dispatch_info=TABLE)
    assert found is ids


def test_on_gpus_sglang_has_finished_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device of another kind stands for one: its ids are not looked at."""
    ids = torch.tensor([[0, 2]], device="meta")
    monkeypatch.setattr(router, "_served", lambda: {torch.device("cpu"), ids.device})
    found, _, _ = process(gpu_only, ids, expert_location_dispatch_info=TABLE.to("meta"))
    assert found is ids


def test_without_data_nothing_is_changed() -> None:
    ids = torch.tensor([[0, 2]])
    assert process(gpu_only, ids)[0] is ids


def test_on_the_simulated_xpu() -> None:
    run_cases("finished_ids_cases.py")


@pytest.mark.parametrize("shared", [0, 2])
@pytest.mark.parametrize("backend", ["auto", "upstream"])
def test_the_router_of_up_to_0_5_9_finishes_its_ids(
    shared: int, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SGLANG_MOE_EXT_BACKEND", backend)
    logical = [[7, 6, 5, *range(8, 8 + shared)]] * 3

    def original(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return torch.ones(3, 3 + shared), torch.tensor(logical, dtype=torch.int32)

    _, ids = make_mapping_router(original, to_physical)(
        hidden_states=torch.zeros(3, 4),
        gating_output=torch.arange(8.0).expand(3, 8),
        correction_bias=torch.zeros(8),
        topk=3 + shared,
        renormalize=True,
        num_fused_shared_experts=shared,
        num_token_non_padded=torch.tensor(2),
        expert_location_dispatch_info=TABLE,
    )
    assert ids.dtype == torch.int32
    assert ids.tolist() == [[11, 2, 8, *range(8, 8 + shared)]] * 2 + [[-1] * (3 + shared)]


@pytest.fixture
def host(tmp_path: Path) -> StubHost:
    return StubHost(tmp_path)


def forget(host: StubHost) -> None:
    """Make the host's post-processing that of 0.5.10 ... 0.5.22: nothing beside GPUs."""
    text = host.topk.read_text()
    without, count = re.subn(r"    else:\n(?:        .*\n)+", "", text)
    assert count == 1
    host.topk.write_text(without)


# Three rows, the last is padded; logical experts 3 and 2 are the physical 0 and 5.
ROUTE = """
found = topk.select_experts(torch.ones(3, 8), torch.zeros(3, 4), torch.arange(4.0),
                            torch.tensor(2), torch.tensor([1, 2, 5, 0]))
assert found[1].tolist() == [[0, 5], [0, 5], [-1, -1]], found
assert [ids.tolist() for ids in topk.recorded] == [[[3, 2]] * 3], topk.recorded
from sglang_moe_ext import overrides
assert overrides.ids_finished().by == "BY", overrides.ids_finished()
assert overrides.INSTALLED.reaches(overrides.POST_PROCESSOR) == ("BY" == "us")
"""


def test_where_sglang_forgets_it_we_do_it(host: StubHost) -> None:
    forget(host)
    probe = host.probe(ROUTE.replace("BY", "us"), SGLANG_MOE_EXT_STRICT="1")
    assert probe.is_like(OURS), probe.log


def test_where_sglang_does_it_we_do_not(host: StubHost) -> None:
    probe = host.probe(ROUTE.replace("BY", "sglang"), SGLANG_MOE_EXT_STRICT="1")
    assert probe.is_like(OURS), probe.log


def test_where_it_cannot_be_told_we_say_so(host: StubHost) -> None:
    host.edit(host.topk, "_post_process_topk_ids", "_finish_topk_ids")
    probe = host.probe(
        "from sglang_moe_ext import overrides\nprint(overrides.ids_finished(), file=sys.stderr)\n"
    )
    assert probe.is_like(OURS), probe.log
    unknown = "by='unknown', why='sglang.srt.layers.moe.topk._post_process_topk_ids does not exist'"
    assert unknown in probe.log


def test_an_unknown_signature_of_it_keeps_sglang_stock(host: StubHost) -> None:
    forget(host)
    host.edit(host.topk, "router_logits, layer_id,", "router_logits, stream, layer_id,")
    probe = host.probe()
    assert probe.is_like(STOCK), probe.log
    (error,) = probe.errors()
    assert "topk._post_process_topk_ids takes (topk_ids, topk_weights, topk_config" in error


if __name__ == "__main__":
    run_file(__file__)
