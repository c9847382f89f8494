"""The plugin loader that patch 0001 brings to releases without a plugin system."""

import importlib.util
import logging
import sys
from pathlib import Path
from types import ModuleType

import pytest

from sglang_moe_ext.ci import register_cpu_ci, run_file
from sglang_moe_ext.patch_files import parse
from sglang_moe_ext.patching import rewrite

register_cpu_ci(est_time=2, suite="base-a-test-cpu")

PATCHES = sorted(Path(__file__).resolve().parents[3].glob("patches/*/0001-load-plugins.patch"))
PLUGINS = """
calls = []

def first():
    calls.append("first")

def broken():
    raise ValueError("no such device")

def last():
    calls.append("last")
"""


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Install a distribution with three plugins, one of them broken; the calls they get."""
    (tmp_path / "some_plugins.py").write_text(PLUGINS)
    info = tmp_path / "some_plugins-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: some-plugins\nVersion: 1\n")
    names = ("first", "broken", "last")
    rows = "".join(f"{name} = some_plugins:{name}\n" for name in names)
    (info / "entry_points.txt").write_text("[sglang.srt.plugins]\n" + rows)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delenv("SGLANG_PLUGINS", raising=False)
    monkeypatch.delitem(sys.modules, "some_plugins", raising=False)
    return importlib.import_module("some_plugins").calls


@pytest.fixture(params=PATCHES, ids=[path.parent.name for path in PATCHES])
def loader(request: pytest.FixtureRequest, tmp_path: Path) -> ModuleType:
    """The module as the patch creates it."""
    created = [diff for diff in parse(request.param).files if diff.creates]
    assert [diff.path for diff in created] == ["srt/plugins/__init__.py"]
    path = tmp_path / "created_plugins.py"
    path.write_text(rewrite(created[0], None) or "")
    spec = importlib.util.spec_from_file_location("created_plugins", path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_calls_every_plugin_once(
    loader: ModuleType, calls: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    loader.load_plugins()
    loader.load_plugins()
    assert calls == ["first", "last"]
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert [record.getMessage() for record in errors] == ["Plugin broken failed"]
    assert "no such device" in caplog.text


@pytest.mark.parametrize(
    ("value", "expected"),
    [("", ["first", "last"]), ("last", ["last"]), (" last , first", ["first", "last"]), ("x", [])],
)
def test_sglang_plugins_filters(
    value: str,
    expected: list[str],
    loader: ModuleType,
    calls: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SGLANG_PLUGINS", value)
    loader.load_plugins()
    assert calls == expected


def test_a_plugin_can_end_the_process(
    loader: ModuleType, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise SystemExit("strict")

    monkeypatch.setattr(sys.modules["some_plugins"], "first", refuse)
    with pytest.raises(SystemExit, match="strict"):
        loader.load_plugins()
    assert calls == []


if __name__ == "__main__":
    run_file(__file__)
