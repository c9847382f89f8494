"""Which release a tree is, which patches are for it, and which files are patches at all."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "releases"))

from fake_package import RELEASE, ROOT, apply_patches, make_package, run
from release_checks import contents

from sglang_moe_ext.ci import register_cpu_ci, run_file
from sglang_moe_ext.patch_files import PatchError, Release, find_patches, parse
from sglang_moe_ext.patching import State, plan

register_cpu_ci(est_time=2, suite="base-a-test-cpu")


def set_version(package: Path, how: str) -> None:
    (package / "version.py").write_text('    __version__ = "0.0.0.dev0"\n')
    above = package.parent
    if how == "_version.py":
        (package / "_version.py").write_text("__version__ = version = '0.5.9'\n")
    elif how == "dist-info":
        (above / "sglang-0.5.9.dist-info").mkdir()
        (above / "sglang-0.5.9.dist-info/METADATA").write_text("Name: sglang\nVersion: 0.5.9\n")
    elif how == "pyproject":
        (above / "pyproject.toml").write_text('[project]\nversion = "0.5.9"\n')
    else:
        git = above.parent / ".git"
        (git / "refs/tags").mkdir(parents=True)
        if how == "packed annotated tag":
            (git / "HEAD").write_text("c0ffee\n")
            (git / "packed-refs").write_text(
                "# pack-refs\nbeef refs/tags/v0.5.8\nfeed refs/tags/v0.5.9\n^c0ffee\n"
            )
        else:
            (git / "HEAD").write_text("ref: refs/heads/main\n")
            (git / "refs/heads").mkdir()
            (git / "refs/heads/main").write_text("c0ffee\n")
            (git / "refs/tags/v0.5.9").write_text("c0ffee\n")


@pytest.mark.parametrize(
    "how",
    ["_version.py", "dist-info", "pyproject", "packed annotated tag", "tag on a branch"],
)
def test_release_is_found(how: str, tmp_path: Path) -> None:
    package = make_package(tmp_path / "python" / "sglang")
    set_version(package, how)
    assert apply_patches.find_release(package)[0] == "0.5.9"


def test_release_is_asked_for(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (package / "version.py").unlink()
    assert run(package, "--apply") == 2
    assert "say --release" in capsys.readouterr().err
    assert run(package, "--apply", "--release", RELEASE) == 0


def test_no_sglang_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "--check") == 2
    assert str(tmp_path / "python" / "sglang") in capsys.readouterr().err


def test_release_without_patches_is_left_alone(
    package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(package)
    assert run(package, "--apply", "--release", "0.5.23") == 0
    assert "no patch for this release" in capsys.readouterr().out
    assert contents(package) == before


@pytest.mark.parametrize(
    ("release", "ranges"),
    [
        ("0.5.2", ["0.5.2", "0.5.2-0.5.5.post2"]),
        ("0.5.5.post2", ["0.5.3-0.5.9", "0.5.2-0.5.5.post2"]),
        ("0.5.5.post3", ["0.5.3-0.5.9", "0.5.5.post3-0.5.9"]),
        ("0.5.10.post1", ["0.5.10", "0.5.10-0.5.12", "0.5.6-0.5.11"]),
        ("0.5.12.post1+xpu", ["0.5.10-0.5.12", "0.5.12"]),
        ("0.5.18", ["0.5.16-0.5.18"]),
        ("0.5.19", []),
        ("0.5.1.post3", []),
    ],
)
def test_ranges_include_posts(release: str, ranges: list[str]) -> None:
    found = find_patches(ROOT / "patches", Release.parse(release))
    assert [patch.name.partition("/")[0] for patch in found] == ranges


@pytest.mark.parametrize("text", ["0.5.10.dev3+gabc", "0.5.9rc1", "main"])
def test_other_versions_are_refused(text: str) -> None:
    with pytest.raises(PatchError, match=r"is not a release.*--release"):
        Release.parse(text)


HEADER = "Base: b\nSeries: ci\nPurpose: p\nUpstream: u\nRemove-when: r\n\n"
FILE = "--- a/python/sglang/x.py\n+++ b/python/sglang/x.py\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEADER.replace("Remove-when: r\n", "") + FILE, "lacks Remove-when"),
        (HEADER + FILE + "@@ -1,2 +1,2 @@\n a\n", "not a unified diff"),
        (HEADER + FILE + "@@ -1,1 +1,2 @@\n a\n?b\n", "expected a line of the hunk"),
        (HEADER + FILE.replace("python/sglang/", ""), "expected '... b/python/sglang/"),
        (HEADER + FILE.replace("b/python/sglang/x", "b/python/sglang/y"), "expected 'a/.*/y.py"),
    ],
    ids=["header", "cut off", "foreign line", "foreign path", "another file"],
)
def test_malformed_patch_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "0001-x.patch").write_text(text)
    with pytest.raises(PatchError, match=message):
        parse(tmp_path / "0001-x.patch")


def test_a_patch_that_fits_both_ways_is_a_conflict(tmp_path: Path) -> None:
    """Both its old and its new text are there: it cannot be told whether it is applied."""
    (tmp_path / "0001-x.patch").write_text(HEADER + FILE + "@@ -1,1 +1,1 @@\n-old\n+new\n")
    patch = parse(tmp_path / "0001-x.patch")
    (step,), texts = plan([patch], {"x.py": "old\nnew\n"}.get)
    assert (step.state, step.reason) == (State.CONFLICT, "fits forwards and backwards")
    assert texts == {}


if __name__ == "__main__":
    run_file(__file__)
