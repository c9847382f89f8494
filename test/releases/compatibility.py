#!/usr/bin/env python3
"""What the plugin does beside every SGLang release, on a CPU.

    python test/releases/compatibility.py               all releases into results.json
    python test/releases/compatibility.py 0.5.9 0.5.16  these

Each release runs in a process of its own with the transformers that it pins, the torch that is
installed, and stand-ins for sgl_kernel and vllm if it does not import without. One that loads no
plugins by itself runs as a copy with patch series "plugin".
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "scripts"), str(Path(__file__).parent)]

import apply_patches  # noqa: E402
import fetch_releases  # noqa: E402
import release_environment  # noqa: E402
from release_checks import check_patches_round_trip  # noqa: E402

RESULTS = Path(__file__).with_name("results.json")
PROBE = Path(__file__).with_name("probe_release.py")
CHECKS = ("cases", "sweep", "ids", "gate")


def examine(release: str, *, up_to: str = "server", **environment: str) -> dict[str, Any]:
    """What `probe_release` reports, "via" plugin or patch, and whether it took "stand_ins".

    up_to: the highest level to import. environment: further variables.
    """
    variables = {"SGLANG_MOE_EXT_STRICT": "1", **environment}
    with tempfile.TemporaryDirectory() as scratch:
        package, via = fetch_releases.fetch(release), "plugin"
        if not (package / "sglang/srt/plugins").is_dir():
            package, via = patched(package, Path(scratch, "release")), "patch"
        for stand_ins in (False, True):
            report = probe(release, package, up_to, variables, stand_ins=stand_ins)
            if not report["errors"]:
                break
    return {"via": via, "stand_ins": stand_ins, **report}


def patched(package: Path, copy: Path) -> Path:
    shutil.copytree(package, copy)
    arguments = ["--root", str(copy), "--series", "plugin", "--apply"]
    with contextlib.redirect_stdout(io.StringIO()) as output:
        if apply_patches.main(arguments) != 0:
            raise RuntimeError(f"{package.name} takes no plugin patch:\n{output.getvalue()}")
    return copy


def probe(
    release: str, package: Path, up_to: str, variables: dict[str, str], *, stand_ins: bool
) -> dict[str, Any]:
    done = release_environment.run(
        release,
        PROBE,
        up_to,
        stand_ins=stand_ins,
        package=package,
        environment=variables,
    )
    if done.returncode or "PROBED " not in done.stdout:
        raise RuntimeError(f"SGLang {release}: exit {done.returncode}:\n{done.stderr[-4000:]}")
    report: dict[str, Any] = json.loads(done.stdout.rpartition("PROBED ")[2])
    return report


def problems(report: dict[str, Any]) -> list[str]:
    """Everything in a report that should not be there."""
    found = [f"plugins: {report['hooks']}"] if report["hooks"] else []
    if report["level"] == "none":
        return [*found, f"does not import: {report['errors']}"]
    found += [f"not live: {path}" for path in report["not_live"]]
    found += [f"left to SGLang: {why}" for why in report["not_ours"]]
    for check in CHECKS:
        failed = report.get(check, {"failed": {"all": "not run"}})["failed"]
        found += [f"{check}: {name}: {why}" for name, why in failed.items()]
    return found


def patches_round_trip(release: str) -> bool:
    package = fetch_releases.fetch(release) / "sglang"
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()):
        try:
            check_patches_round_trip(release, package, Path(scratch))
        except AssertionError:
            return False
    return True


def summary(report: dict[str, Any], *, patches: bool) -> dict[str, Any]:
    """What the README's table is made from."""
    counts = {
        check: [report[check]["total"] - len(report[check]["failed"]), report[check]["total"]]
        for check in CHECKS
        if check in report
    }
    kept = {key: report[key] for key in ("via", "level", "stand_ins", "ids_finished_by")}
    return {**kept, **counts, "live": not report["not_live"], "patches": patches}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("releases", nargs="*", metavar="RELEASE")
    options = parser.parse_args()
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    failed = 0
    for release in options.releases or list(fetch_releases.recorded()):
        report = examine(release)
        results[release] = summary(report, patches=patches_round_trip(release))
        ordered = {each: results[each] for each in fetch_releases.recorded() if each in results}
        RESULTS.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")
        found = problems(report)
        failed += bool(found)
        print(f"{release:13} {report['seconds']:5} s  {json.dumps(results[release])}", flush=True)
        for problem in found:
            print(f"    {problem}", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
