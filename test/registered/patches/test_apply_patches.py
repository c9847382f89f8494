"""apply_patches: states, all or nothing, idempotence and undo."""

import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "releases"))

from fake_package import CREATED, SCHEDULER, apply_patches, make_package, run
from release_checks import check_patches_round_trip, contents, package_of

from sglang_moe_ext import transaction
from sglang_moe_ext.ci import register_cpu_ci, run_file

register_cpu_ci(est_time=2, suite="base-a-test-cpu")


@pytest.mark.parametrize("inside", [".", "python", "lib/site-packages"])
@pytest.mark.parametrize("root_is", ["package", "above"])
def test_round_trip_in_every_layout(inside: str, root_is: str, tmp_path: Path) -> None:
    package = make_package(tmp_path / inside / "sglang")
    root = package if root_is == "package" else package.parent
    if inside == "python" and root_is == "above":
        root = tmp_path
    before = contents(package)
    assert run(root) == 1
    assert run(root, "--apply") == 0
    applied = contents(package)
    assert CREATED in applied
    assert run(root, "--check") == 0
    assert run(root, "--revert") == 0
    assert contents(package) == before
    assert run(root, "--apply") == 0
    assert contents(package) == applied


@pytest.mark.parametrize("release", ["0.5.16", "0.5.9"])
def test_round_trip_of_real_release(release: str, tmp_path: Path) -> None:
    check_patches_round_trip(release, package_of(release), tmp_path)


def test_apply_and_revert_are_idempotent(package: Path) -> None:
    untouched = {path: path.stat().st_mtime_ns for path in package.rglob("*")}
    assert run(package, "--revert") == 0
    assert {path: path.stat().st_mtime_ns for path in package.rglob("*")} == untouched
    run(package, "--apply")
    applied = {path: path.stat().st_mtime_ns for path in package.rglob("*")}
    assert run(package, "--apply") == 0
    assert {path: path.stat().st_mtime_ns for path in package.rglob("*")} == applied


def test_list_changes_nothing(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(package)
    assert run(package, "--list") == 0
    assert contents(package) == before
    printed = capsys.readouterr().out
    for name in ("0001-load-plugins", "0002-xpu-topk-sigmoid", "0003-register-xpu-ci"):
        assert name in printed
    assert "Remove-when: the release is 0.5.11 or newer." in printed


def test_series_selects_patches(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(package, "--series", "plugin", "--apply") == 0
    capsys.readouterr()
    assert run(package, "--check") == 1
    states = [line[:12].strip() for line in capsys.readouterr().out.splitlines()[1:]]
    assert states == ["applied", "not applied", "not applied"]


def test_undo_line_undoes(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(package)
    run(package, "--series", "xpu", "--apply")
    undo = [line for line in capsys.readouterr().out.splitlines() if line.startswith("undo: ")]
    assert len(undo) == 1
    words = shlex.split(undo[0].removeprefix("undo: "))
    assert apply_patches.main(words[2:]) == 0
    assert contents(package) == before


def edit_context(package: Path) -> str:
    text = (package / SCHEDULER).read_text()
    (package / SCHEDULER).write_text(text.replace("# Generate the logger prefix", "# Prefix"))
    return SCHEDULER


def repeat_context(package: Path) -> str:
    (package / SCHEDULER).write_text((package / SCHEDULER).read_text() * 2)
    return SCHEDULER


def occupy_created_file(package: Path) -> str:
    (package / CREATED).parent.mkdir()
    (package / CREATED).write_text("mine = 1\n")
    return CREATED


def apply_partly(package: Path) -> str:
    original = (package / SCHEDULER).read_bytes()
    run(package, "--apply")
    (package / SCHEDULER).write_bytes(original)
    return SCHEDULER


def edit_created_file(package: Path) -> str:
    run(package, "--apply")
    (package / CREATED).write_text((package / CREATED).read_text() + "mine = 1\n")
    return CREATED


def remove_target(package: Path) -> str:
    (package / SCHEDULER).unlink()
    return SCHEDULER


def use_other_line_ends(package: Path) -> str:
    text = (package / SCHEDULER).read_bytes()
    (package / SCHEDULER).write_bytes(text.replace(b"\n", b"\r\n"))
    return SCHEDULER


def link_target(package: Path) -> str:
    (package / SCHEDULER).rename(package / "elsewhere.py")
    (package / SCHEDULER).symlink_to(package / "elsewhere.py")
    return SCHEDULER


@pytest.mark.parametrize("action", ["--apply", "--revert"])
@pytest.mark.parametrize(
    "damage",
    [
        edit_context,
        repeat_context,
        occupy_created_file,
        apply_partly,
        edit_created_file,
        remove_target,
        use_other_line_ends,
    ],
)
def test_conflict_touches_nothing(
    damage: Callable[[Path], str],
    action: str,
    package: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    damaged = damage(package)
    before = contents(package)
    capsys.readouterr()
    assert run(package, action) == 2
    assert contents(package) == before
    printed = capsys.readouterr()
    conflicts = [line for line in printed.out.splitlines() if line.startswith("conflict")]
    assert len(conflicts) == 1
    assert damaged in conflicts[0]
    assert "nothing was changed" in printed.err
    assert run(package, "--check") == 2


def test_symbolic_link_is_refused(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    link_target(package)
    before = contents(package)
    assert run(package, "--apply") == 2
    assert "symbolic link" in capsys.readouterr().err
    assert contents(package) == before
    assert (package / SCHEDULER).is_symlink()


def test_edits_elsewhere_survive(package: Path) -> None:
    run(package, "--apply")
    with (package / SCHEDULER).open("a") as stream:
        stream.write("# mine\n")
    assert run(package, "--check") == 0
    assert run(package, "--revert") == 0
    assert (package / SCHEDULER).read_text().endswith("# after\n# mine\n")


def test_mode_and_hard_links_are_kept(package: Path, tmp_path: Path) -> None:
    target = package / SCHEDULER
    target.chmod(0o640)
    original = target.read_bytes()
    os.link(target, tmp_path / "package-cache.py")
    run(package, "--apply")
    assert target.stat().st_mode & 0o777 == 0o640
    assert target.read_bytes() != original
    assert (tmp_path / "package-cache.py").read_bytes() == original


def test_revert_removes_compiled_files_of_created_module(package: Path) -> None:
    run(package, "--apply")
    compiled = package / "srt/plugins/__pycache__/__init__.cpython-311.pyc"
    compiled.parent.mkdir()
    compiled.write_bytes(b"")
    assert run(package, "--revert") == 0
    assert not (package / "srt/plugins").exists()


def test_second_process_is_refused(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(package)
    with transaction.exclusive(package):
        assert run(package, "--apply") == 2
    assert "another process" in capsys.readouterr().err
    assert contents(package) == before


if __name__ == "__main__":
    run_file(__file__)
