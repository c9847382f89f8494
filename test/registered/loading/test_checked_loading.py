"""Every defect is refused before a model serves, or accepted by the variable that says so."""

from __future__ import annotations

import logging
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from test_support.defects import BIAS, DEFECTS, GATE, SHARDS, make_defective
from torch import Tensor, nn

from sglang_moe_ext import env
from sglang_moe_ext.ci import register_cpu_ci, run_file
from sglang_moe_ext.loading import (
    CheckpointError,
    make_direct_loader,
    make_initializer,
    make_tensor_updater,
    mark_gate_parameter,
)
from sglang_moe_ext.origin import file_of
from sglang_moe_ext.parameters import renew, rounded_away

register_cpu_ci(est_time=7, suite="base-a-test-cpu")

ROOT = Path(__file__).parents[3]
EXPERTS = 64
MODEL = "model.safetensors"


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("healthy") / "checkpoint"
    script = ROOT / "scripts" / "make_checkpoint.py"
    command = [sys.executable, script, path, "--experts", str(EXPERTS), "--expert-hidden", "8"]
    subprocess.run(command, check=True)
    return path


@pytest.fixture(autouse=True)
def defaults(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("SGLANG_MOE_EXT_BIAS", raising=False)
    env.settings.cache_clear()
    yield
    env.settings.cache_clear()


class Model(nn.Module):
    """The routing parameters of a two-layer model, loaded as SGLang's models load them."""

    def __init__(self, gate_is_ours: bool = True) -> None:
        super().__init__()
        self.weights = nn.ParameterDict()
        for layer in (1, 2):
            self._add(f"model.layers.{layer}.mlp.gate.weight", (EXPERTS, 128), gate_is_ours)
            self._add(f"{BIAS}".replace(".1.", f".{layer}."), (EXPERTS,), gate_is_ours)

    def _add(self, name: str, shape: tuple[int, ...], gate_is_ours: bool) -> None:
        parameter = nn.Parameter(torch.zeros(shape), requires_grad=False)
        if gate_is_ours:
            mark_gate_parameter(parameter, name)
        holder: nn.Module = self
        *path, last = name.split(".")
        for part in path:
            if not hasattr(holder, part):
                holder.add_module(part, nn.Module())
            holder = getattr(holder, part)
        setattr(holder, last, parameter)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        parameters = dict(self.named_parameters())
        for name, tensor in weights:
            if name in parameters:
                loader = getattr(parameters[name], "weight_loader", copy)
                loader(parameters[name], tensor)


def copy(parameter: nn.Parameter, tensor: Tensor) -> None:
    """What SGLang does without a `weight_loader`."""
    parameter.data.copy_(tensor)


def load(path: Path, model: Model | None = None) -> Model:
    config = SimpleNamespace(model_path=str(path))
    model = make_initializer(lambda config: model or Model())(config)
    model.load_weights(load_file(path / "model.safetensors").items())
    return model


def test_a_healthy_checkpoint_loads_as_it_is(healthy: Path) -> None:
    model = load(healthy)
    stored = load_file(healthy / "model.safetensors")
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, stored[name].float())


@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_is_refused(healthy: Path, tmp_path: Path, name: str) -> None:
    path = make_defective(healthy, tmp_path, name)
    with pytest.raises(CheckpointError) as refusal:
        load(path)
    assert re.search(DEFECTS[name][1].replace("[", r"\["), str(refusal.value))


@pytest.mark.parametrize("name", ["bias missing", "bias NaN", "bias merged by bfloat16"])
def test_a_gate_that_is_not_ours_is_checked_too(healthy: Path, tmp_path: Path, name: str) -> None:
    path = make_defective(healthy, tmp_path, name)
    with pytest.raises(CheckpointError, match=re.escape(BIAS)):
        load(path, Model(gate_is_ours=False))


def test_the_refusal_says_file_and_remedy(healthy: Path, tmp_path: Path) -> None:
    path = make_defective(healthy, tmp_path, "bias NaN")
    with pytest.raises(CheckpointError) as refusal:
        load(path)
    for part in ("model.safetensors", "SGLANG_MOE_EXT_BIAS=zero", "inspect", str(path)):
        assert part in str(refusal.value)


@pytest.mark.parametrize("name", ["bias missing", "bias NaN"])
def test_zero_fills_a_broken_bias_and_says_so(
    healthy: Path,
    tmp_path: Path,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("SGLANG_MOE_EXT_BIAS", "zero")
    with caplog.at_level(logging.WARNING):
        model = load(make_defective(healthy, tmp_path, name))
    assert torch.equal(dict(model.named_parameters())[BIAS], torch.zeros(EXPERTS))
    (message,) = [record.getMessage() for record in caplog.records]
    assert BIAS in message
    assert "filled with zeros" in message


def test_warn_takes_the_bias_as_it_is(
    healthy: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("SGLANG_MOE_EXT_BIAS", "warn")
    with caplog.at_level(logging.WARNING):
        load(make_defective(healthy, tmp_path, "bias merged by bfloat16"))
    assert "accepted by SGLANG_MOE_EXT_BIAS=warn" in caplog.text


def test_what_was_accepted_is_said_once(
    healthy: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("SGLANG_MOE_EXT_BIAS", "warn")
    with caplog.at_level(logging.WARNING):
        model = load(make_defective(healthy, tmp_path, "bias merged by bfloat16"))
        for _ in range(3):
            model.load_weights([(GATE, torch.ones(EXPERTS, 128))])
    assert len(caplog.records) == 1


@pytest.mark.parametrize(("name", "at_3"), [("bias missing", 0.0), ("bias inf", torch.inf)])
def test_warn_never_serves_our_own_marks(
    healthy: Path, tmp_path: Path, name: str, at_3: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SGLANG_MOE_EXT_BIAS", "warn")
    bias = dict(load(make_defective(healthy, tmp_path, name)).named_parameters())[BIAS]
    assert bias[3] == at_3
    assert not bias.isnan().any()


def test_no_variable_accepts_a_missing_gate(
    healthy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SGLANG_MOE_EXT_BIAS", "zero")
    with pytest.raises(CheckpointError, match=re.escape(GATE)):
        load(make_defective(healthy, tmp_path, "gate missing"))


def test_an_update_of_some_tensors_is_complete(healthy: Path) -> None:
    model = load(healthy)
    model.load_weights([(BIAS, torch.full((EXPERTS,), 0.5))])
    assert dict(model.named_parameters())[BIAS].unique().tolist() == [0.5]


@pytest.mark.parametrize("bad", [torch.zeros(3), torch.zeros(EXPERTS).long()], ids=str)
def test_a_refused_update_leaves_the_old_values(healthy: Path, bad: Tensor) -> None:
    model = load(healthy)
    before = dict(model.named_parameters())[BIAS].clone()
    with pytest.raises(CheckpointError):
        model.load_weights([(BIAS, bad)])
    assert torch.equal(dict(model.named_parameters())[BIAS], before)


@pytest.mark.parametrize("bad", [torch.zeros(3), torch.full((EXPERTS,), torch.inf)], ids=str)
def test_nothing_of_a_refused_update_in_memory_is_written(healthy: Path, bad: Tensor) -> None:
    """Neither by `load_weights` nor where SGLang writes into the parameters itself."""
    model = load(healthy)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    update = [(GATE, torch.ones(EXPERTS, 128)), (BIAS, bad)]
    for write in (model.load_weights, lambda tensors: load_direct(model, tensors)):
        with pytest.raises(CheckpointError, match=re.escape(BIAS)):
            write(update)
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, before[name])


def load_direct(model: nn.Module, named_tensors: list[tuple[str, Tensor]]) -> None:
    def write(model: nn.Module, tensors: list[tuple[str, Tensor]]) -> None:
        parameters = dict(model.named_parameters())
        for name, tensor in tensors:
            copy(parameters[name], tensor)

    make_direct_loader(write)(model, named_tensors)


def test_a_direct_update_is_written(healthy: Path) -> None:
    model = load(healthy)
    load_direct(model, [(BIAS, torch.full((EXPERTS,), 0.5))])
    assert dict(model.named_parameters())[BIAS].unique().tolist() == [0.5]


def test_a_merged_bias_in_memory_is_not_written(healthy: Path) -> None:
    model = load(healthy)
    before = dict(model.named_parameters())[BIAS].clone()
    merged = (7 + torch.linspace(-0.1, 0.1, EXPERTS)).bfloat16().float()
    with pytest.raises(CheckpointError, match="rounding has merged"):
        model.load_weights([(BIAS, merged)])
    assert torch.equal(dict(model.named_parameters())[BIAS], before)


def test_a_failed_update_leads_back_to_the_last_good_checkpoint(
    healthy: Path, tmp_path: Path
) -> None:
    """SGLang rolls back by loading `model_path` again, which names the one that failed."""
    config, tensors = SimpleNamespace(model_path=str(healthy)), load_file(healthy / MODEL)
    model = make_initializer(lambda config: Model())(config)
    model.load_weights(iter(tensors.items()))
    for path, bias, kept in (
        ("broken", torch.nan, str(healthy)),
        ("newer", 0.5, "newer"),
        ("broken", torch.nan, "newer"),
    ):
        config.model_path = path
        update = tensors | {BIAS: torch.full((EXPERTS,), bias)}
        if bias == bias:
            model.load_weights(iter(update.items()))
        else:
            with pytest.raises(CheckpointError):
                model.load_weights(iter(update.items()))
        assert config.model_path == kept


def test_a_bias_made_in_inference_mode_has_no_version() -> None:
    with torch.inference_mode():
        bias = torch.zeros(EXPERTS)
    holder = nn.Module()
    holder.topk_config = SimpleNamespace(correction_bias=bias)
    renew(holder)


def test_a_direct_update_makes_copies_stale(healthy: Path) -> None:
    """SGLang keys its cast copy of a bias on the version, which `.data` leaves as it was."""
    model = load(healthy)
    bias = dict(model.named_parameters())[BIAS]
    model.topk_config = SimpleNamespace(correction_bias=bias)
    before = bias._version
    values = torch.arange(float(EXPERTS))
    make_direct_loader(lambda model, tensors: bias.data.copy_(values))(model, [(BIAS, values)])
    assert bias._version > before


def test_a_refusal_of_an_update_is_an_answer() -> None:
    def update(self: object, named_tensors: object, load_format: str | None = None) -> None:
        raise {"direct": CheckpointError("why"), None: KeyError("a bug")}[load_format]

    checked = make_tensor_updater(update)
    assert checked(None, [], "direct") == (False, "why")
    with pytest.raises(KeyError):
        checked(None, [])


def test_a_bias_may_be_renamed_by_the_family(healthy: Path) -> None:
    """What is not known by its name is judged by its values, before the family maps it."""
    model = load(healthy)
    with pytest.raises(CheckpointError, match="not finite"):
        model.load_weights([("mlp.moe_statics.expert_bias", torch.full((EXPERTS,), torch.nan))])
    model.load_weights([("mlp.moe_statics.expert_bias", torch.zeros(1, EXPERTS))])


def test_a_loader_that_bypasses_load_weights(healthy: Path) -> None:
    """Sharded state and dummy weights write by themselves; all loaders end with `eval()`."""

    def build() -> Model:
        return make_initializer(lambda config: Model())(SimpleNamespace(model_path=str(healthy)))

    complete, incomplete = build(), build()
    for parameter in complete.parameters():
        parameter.data.uniform_(-1e-3, 1e-3)
    assert not complete.eval().training
    with pytest.raises(CheckpointError, match="4 routing tensor"):
        incomplete.eval()


def test_a_misnamed_bias_is_named(healthy: Path, tmp_path: Path) -> None:
    path = make_defective(healthy, tmp_path, "bias misnamed")
    with pytest.raises(CheckpointError, match=r"the checkpoint has model.layers.1.mlp.gate.bias"):
        load(path)


def test_layers_beyond_the_last_are_named(
    healthy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = make_defective(healthy, tmp_path, "extra layers")
    for mtp_layers, warnings in ((0, 2), (5, 0)):
        text = SimpleNamespace(num_hidden_layers=3, num_nextn_predict_layers=mtp_layers)
        config = SimpleNamespace(model_path=str(path), hf_text_config=text)
        model = make_initializer(lambda config: Model())(config)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            model.load_weights(load_file(path / "model.safetensors").items())
        assert len(caplog.records) == warnings
        assert all("layers.7.mlp.gate" in record.getMessage() for record in caplog.records)


def test_the_file_of_a_tensor_among_shards(healthy: Path, tmp_path: Path) -> None:
    """With and without an index, and where the index names a file that is absent."""
    path = make_defective(healthy, tmp_path, "shard absent")
    key = "model.layers.2.mlp.experts.0.up_proj.weight"
    assert file_of(path, BIAS) == SHARDS[0]
    assert file_of(path, key) == f"{SHARDS[1]}, which is absent"
    assert file_of(path, "another") == "not in model.safetensors.index.json"
    (path / "model.safetensors.index.json").unlink()
    assert file_of(path, BIAS) == SHARDS[0]
    assert file_of(path, key) == f"not in {SHARDS[0]}"
    shutil.copy(path / SHARDS[0], path / "another.safetensors")
    assert file_of(path, key) == "in none of 2 files"


def test_a_broken_file_does_not_hide_where_a_tensor_is(healthy: Path, tmp_path: Path) -> None:
    shutil.copytree(healthy, tmp_path / "two")
    (tmp_path / "two" / "a-broken.safetensors").write_bytes(b"rubbish")
    assert file_of(tmp_path / "two", BIAS) == MODEL


@pytest.mark.parametrize(
    "bias",
    [
        torch.zeros(256),
        torch.randn(256).bfloat16(),
        7 + torch.linspace(-0.2, 0.2, 256),
        torch.tensor([0.1, 0.2]).repeat(128),
    ],
    ids=["all zero", "bfloat16 around 0", "float32 at an offset", "two float32 values"],
)
def test_a_bias_that_lost_nothing_is_no_defect(bias: Tensor) -> None:
    assert rounded_away(bias.float()) is None


if __name__ == "__main__":
    run_file(__file__)
