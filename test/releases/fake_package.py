"""A stand-in for an SGLang tree that the patches fit, and the command that is tested on it."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import apply_patches  # noqa: E402

from sglang_moe_ext.patch_files import Release, find_patches  # noqa: E402

RELEASE = "0.5.9"
CREATED = "srt/plugins/__init__.py"
SCHEDULER = "srt/managers/scheduler.py"


def make_package(package: Path) -> Path:
    """A stand-in for SGLang 0.5.9: only the lines its patches need, between other lines."""
    for patch in find_patches(ROOT / "patches", Release.parse(RELEASE)):
        for diff in (diff for diff in patch.files if not diff.creates):
            file = package / diff.path
            file.parent.mkdir(parents=True, exist_ok=True)
            blocks = ["".join(hunk.old) for hunk in diff.hunks]
            file.write_text("# before\n" + "# between\n".join(blocks) + "# after\n")
    (package / "version.py").write_text(f'__version__ = "{RELEASE}"\n')
    return package


def run(package: Path, *arguments: str) -> int:
    return apply_patches.main(["--root", str(package), *arguments])
