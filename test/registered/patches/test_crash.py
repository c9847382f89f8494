"""A crash between any two file operations of apply_patches leaves the old or the new tree."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "releases"))

from fake_package import CREATED, SCHEDULER, make_package, run
from release_checks import contents

from sglang_moe_ext import transaction
from sglang_moe_ext.ci import register_cpu_ci, run_file

register_cpu_ci(est_time=5, suite="base-a-test-cpu")


class Crash(BaseException):
    """Stands for SIGKILL: nothing in the code under test catches it."""


@contextmanager
def crash_at(step: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Crash before the step-th file operation; a write is cut off halfway instead."""
    left = step

    def counted(operation: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            nonlocal left
            if left == 0:
                raise Crash
            left -= 1
            return operation(*arguments, **options)

        return call

    def write_synced(path: Path, content: bytes) -> None:
        nonlocal left
        if left == 0:
            path.write_bytes(content[: len(content) // 2])
            raise Crash
        left -= 1
        path.write_bytes(content)

    with monkeypatch.context() as patched:
        for name in ("replace", "unlink", "mkdir", "rmdir"):
            patched.setattr(os, name, counted(getattr(os, name)))
        patched.setattr(transaction, "_write_synced", write_synced)
        yield


@pytest.mark.parametrize("action", ["--apply", "--revert"])
def test_crash_leaves_old_or_new_tree(
    action: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old_package = make_package(tmp_path / "old" / "sglang")
    new_package = make_package(tmp_path / "new" / "sglang")
    run(old_package if action == "--revert" else new_package, "--apply")
    old, new = contents(old_package), contents(new_package)
    outcomes = []
    for step in range(100):
        crashed = tmp_path / f"crashed-{step}" / "sglang"
        shutil.copytree(old_package, crashed)
        if not crashes(crashed, step, monkeypatch, action):
            assert contents(crashed) == new
            break
        assert_importable(crashed)
        for again in range(100):  # the recovery is killed as well
            package = tmp_path / f"crashed-{step}-{again}" / "sglang"
            shutil.copytree(crashed, package)
            killed = crashes(package, again, monkeypatch, "--check")
            assert_importable(package)
            run(package, "--check")
            found = contents(package)
            assert found in (old, new), f"a mix after crashes at operations {step} and {again}"
            if not killed:
                break
        outcomes.append(found == new)
    assert outcomes == sorted(outcomes), "once committed, always finished"
    assert set(outcomes) == {False, True}


def crashes(package: Path, step: int, monkeypatch: pytest.MonkeyPatch, action: str) -> bool:
    try:
        with crash_at(step, monkeypatch):
            run(package, action)
    except Crash:
        return True
    return False


def assert_importable(package: Path) -> None:
    """No file calls the plugin loader unless the loader is there."""
    callers = [path for path in package.rglob("*.py") if "load_plugins()" in path.read_text()]
    assert not callers or (package / CREATED).exists()


def test_recovery_leaves_somebodys_edit_alone(
    package: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*arguments: object) -> None:
        raise Crash

    monkeypatch.setattr(transaction, "_finish", stop)
    with pytest.raises(Crash):
        run(package, "--apply")
    monkeypatch.undo()
    (package / SCHEDULER).write_text("mine\n")
    before = contents(package)
    assert run(package, "--apply") == 2
    assert "was edited after an interrupted run" in capsys.readouterr().err
    assert contents(package) == before


@pytest.mark.parametrize("failing", ["srt/managers", "."], ids=["target", "journal"])
def test_failed_write_is_taken_back(
    failing: str,
    package: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_synced = transaction._write_synced

    def deny(path: Path, content: bytes) -> None:
        if path.parent == package / failing:
            raise PermissionError(13, "Permission denied", str(path))
        write_synced(path, content)

    monkeypatch.setattr(transaction, "_write_synced", deny)
    before = contents(package)
    assert run(package, "--apply") == 2
    assert "the old files are in place" in capsys.readouterr().err
    assert contents(package) == before


if __name__ == "__main__":
    run_file(__file__)
