"""Checks of the SGLang beside us: known, discovered, patched, and live in a fresh process."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sglang_moe_ext import env, host, overrides, patch_files, patching, signatures
from sglang_moe_ext.doctor.check import Check
from sglang_moe_ext.patch_files import PatchError, Release
from sglang_moe_ext.patching import State

ENTRY_POINT_GROUP, ENTRY_POINT = "sglang.srt.plugins", "moe_ext"
PROBE_TIMEOUT_S = 180

# Loads plugins in a fresh process, as a server would, and prints one JSON line.
_PROBE = """
import importlib, json, logging, traceback
errors = []
class Keep(logging.Handler):
    def emit(self, record):
        if record.name.startswith("sglang_moe_ext"):
            errors.append(record.getMessage())
logging.getLogger().addHandler(Keep(logging.ERROR))
from sglang_moe_ext import host, notice, overrides
live, names = {}, set()
try:
    from sglang.srt.plugins import load_plugins
    load_plugins()
    for target in overrides.targets():
        importlib.import_module(target.module)
        live[target.path] = overrides.INSTALLED.reaches(target)
        names |= {target.path, f"{target.module}.{target.called_as}"}
except Exception as error:
    at = traceback.extract_tb(error.__traceback__)[-1]
    report = {"raised": f"{notice.describe(error)} ({at.filename}, line {at.lineno})"}
else:
    report = {"live": live, "errors": errors, "hooks": list(host.foreign_hooks(names))}
print(json.dumps(report))
"""


def installed() -> Iterator[Check]:
    for package, remedy in (
        ("sglang", "install SGLang; the plugin does nothing without it"),
        ("torch", "install the PyTorch that your SGLang asks for"),
    ):
        if importlib.util.find_spec(package) is None:
            yield Check(package, "fail", "not installed", remedy)
            continue
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            version = "a source tree without a version"
        if package == "sglang":
            yield _acquaintance(version)
        else:
            yield Check(package, "ok", version)


def _acquaintance(version: str) -> Check:
    """How well a release of SGLang is known."""
    first, last = signatures.RELEASES
    tested = f"we were tested with {first} to {last}"
    try:
        known = Release.parse(first) <= Release.parse(version) <= Release.parse(last)
    except PatchError:
        known = False
    if known:
        return Check("sglang", "ok", f"{version}, {tested}")
    remedy = "look for a newer sglang-moe-ext; whether this one is live is said below"
    return Check("sglang", "warn", f"{version}, {tested}", remedy)


def variables() -> Iterator[Check]:
    try:
        settings = env.settings()
    except env.EnvError as error:
        yield Check("variables", "fail", str(error), "correct or unset it")
        return
    changed = [f"{v.name}={os.environ[v.name]}" for v in env.VARIABLES if v.name in os.environ]
    found = ", ".join(changed) or "all at their defaults"
    if settings.enabled:
        yield Check("variables", "ok", found)
    else:
        yield Check("variables", "warn", found, f"unset {env.PREFIX} to switch the plugin on")


def discovery() -> Iterator[Check]:
    """Would SGLang find and run our entry point?"""
    name = f"entry point {ENTRY_POINT}"
    points = [
        point
        for point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)
        if point.name == ENTRY_POINT
    ]
    owners = sorted({point.dist.name if point.dist else "unknown" for point in points})
    allowed = [each.strip() for each in os.environ.get("SGLANG_PLUGINS", "").split(",") if each]
    if not points:
        yield Check(name, "fail", "not found", "pip install sglang-moe-ext in this environment")
    elif len(owners) > 1:
        yield Check(name, "fail", f"claimed by {', '.join(owners)}", "uninstall all but one")
    elif allowed and ENTRY_POINT not in allowed:
        found = f"excluded by SGLANG_PLUGINS={os.environ['SGLANG_PLUGINS']}"
        yield Check(name, "fail", found, f"add {ENTRY_POINT} to SGLANG_PLUGINS")
    elif importlib.util.find_spec("sglang.srt.plugins") is None:
        remedy = "upgrade to 0.5.11 or newer, or run scripts/apply_patches.py --series plugin"
        yield Check(name, "fail", f"SGLang {host.release()} loads no plugins", remedy)
    else:
        yield Check(name, "ok", f"from {owners[0]}")


def known_signatures() -> Iterator[Check]:
    problems = overrides.problems()
    remedy = "upgrade sglang-moe-ext; until then SGLang stays stock"
    for problem in problems:
        yield Check("signatures", "fail", problem, remedy)
    if not problems:
        yield Check("signatures", "ok", f"those of SGLang {host.release()} are known")


def finished_ids() -> Iterator[Check]:
    """Are padded rows masked and experts remapped on XPU and CPU, and by whom?"""
    finished = overrides.ids_finished()
    words = {
        "sglang": "done by SGLang",
        "router": "done by the router, ours included",
        "us": "restored by us, SGLang forgets it on XPU and CPU",
        "unknown": "unknown: on XPU and CPU padded rows may reach real experts",
    }
    status = "warn" if finished.by == "unknown" else "ok"
    remedy = "" if status == "ok" else "with EPLB or padding on these devices, use 0.5.23"
    yield Check("padding, remapping", status, f"{words[finished.by]} ({finished.why})", remedy)


def patches() -> Iterator[Check]:
    """Which of our patches this SGLang carries."""
    spec = importlib.util.find_spec("sglang")
    package = Path(next(iter((spec and spec.submodule_search_locations) or [""])))
    try:
        known = patch_files.find_patches(patch_files.FOLDER, Release.parse(host.release() or ""))
    except PatchError:
        return  # not a release, so there are no patches for it
    steps, _ = patching.plan(known, patching.reader(package))
    applied = [step.patch.name for step in steps if step.state is State.APPLIED]
    conflicts = [f"{s.patch.name}: {s.reason}" for s in steps if s.state is State.CONFLICT]
    if conflicts:
        remedy = f"if you edited it, scripts/apply_patches.py --root {package} --check tells more"
        yield Check("patches", "warn", "; ".join(conflicts), remedy)
    elif known:
        names = ", ".join(applied) or f"none, {len(known)} would fit this release"
        yield Check("patches", "ok", f"applied: {names}")


def liveness() -> Iterator[Check]:
    """Load plugins in a fresh process and look where SGLang's calls would go."""
    try:
        report = _probe()
    except (subprocess.SubprocessError, ValueError) as error:
        yield Check("live", "fail", *_whose(str(error)))
        return
    for target in overrides.targets():
        is_ours = report["live"][target.path]
        found = "resolves to us" if is_ours else "resolves to SGLang's own"
        remedy = "" if is_ours else "; ".join(report["errors"]) or "see the checks above"
        name = f"live: {target.name.rpartition('.')[2]}"
        yield Check(name, "ok" if is_ours else "fail", found, remedy)
    for path, kind, plugin in report["hooks"]:
        name = path.rpartition(".")[2]
        yield Check(f"hook: {name}", "ok", f"plugin {plugin} has a hook of kind {kind} on it, too")


def _whose(error: str) -> tuple[str, str]:
    """What to say of an error while loading, and its remedy: does it come without us, too?"""
    try:
        _probe(**{env.PREFIX: "0"})
    except (subprocess.SubprocessError, ValueError):
        remedy = "repair what it names, usually by reinstalling it for this PyTorch, and try again"
        return f"SGLang itself does not start here, with or without us: {error}", remedy
    return f"with us, SGLang does not start here: {error}", f"{env.PREFIX}=0 switches us off"


def _probe(**environment: str) -> dict[str, Any]:
    """The report of a process that loaded plugins; ValueError if it could not."""
    process = subprocess.run(
        [sys.executable, "-c", _PROBE],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=PROBE_TIMEOUT_S,
    )
    if process.returncode:
        last = process.stderr.strip().splitlines()[-1:] or ["no message"]
        raise ValueError(f"loading plugins ended with exit code {process.returncode}: {last[0]}")
    report: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    if "raised" in report:
        raise ValueError(report["raised"])
    return report
