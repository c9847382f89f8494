"""`doctor`: is the plugin live beside this SGLang, what would serve which model, and why.

A verdict, not a listing: one line per check, with the remedy where something is wrong.
Plugins are loaded in a fresh process, as a server would.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from sglang_moe_ext import __version__, env, host, overrides

ENTRY_POINT_GROUP, ENTRY_POINT = "sglang.srt.plugins", "moe_ext"
PROBE_TIMEOUT_S = 180

# E, K, G, kept groups of models whose routing is ours.
MODEL_SHAPES = {
    "DeepSeek-V3, Ling": (256, 8, 8, 4),
    "Kimi-K2": (384, 8, 1, 1),
    "GLM-5, MiniMax-M2": (256, 8, 1, 1),
    "GLM-4.5": (160, 8, 1, 1),
    "GLM-4.5-Air": (128, 8, 1, 1),
    "Nemotron-3-Nano": (128, 6, 1, 1),
    "Nemotron-3-Super": (512, 22, 1, 1),
    "Kimi-K3": (896, 16, 1, 1),
}

# Runs in a fresh process and prints one JSON line.
_PROBE = """
import json, logging, sys
errors = []
class Keep(logging.Handler):
    def emit(self, record):
        if record.name.startswith("sglang_moe_ext"):
            errors.append(record.getMessage())
logging.getLogger().addHandler(Keep(logging.ERROR))
from sglang.srt.plugins import load_plugins
load_plugins()
import importlib
from sglang_moe_ext import overrides
live = {}
for target in overrides.TARGETS:
    module = importlib.import_module(target.module)
    live[target.path] = overrides.leads_to_us(overrides.lookup(module, target.called_as))
print(json.dumps({"live": live, "errors": errors}))
"""


@dataclass(frozen=True)
class Check:
    """One line of the report; status is "ok", "warn" or "fail"."""

    name: str
    status: str
    found: str
    remedy: str = ""


def examine() -> list[Check]:
    """Every check, in the order in which one would look."""
    checks = [*_installed(), *_variables()]
    if importlib.util.find_spec("sglang"):
        checks += [*_discovery(), *_signatures()]
        if importlib.util.find_spec("torch"):
            checks += _liveness()
    if importlib.util.find_spec("torch"):
        checks += _backends()
    return checks


def run(as_json: bool) -> int:
    """Print the report; 0 if nothing failed, else 1."""
    checks = examine()
    failed = sum(check.status == "fail" for check in checks)
    if as_json:
        print(json.dumps({"ok": not failed, "checks": [asdict(c) for c in checks]}, indent=2))
        return int(failed > 0)
    width = max(len(check.name) for check in checks)
    for check in checks:
        print(f"{check.status:4}  {check.name.ljust(width)}  {check.found}")
        if check.remedy:
            print(f"      {' ' * width}  -> {check.remedy}")
    print(f"\nsglang-moe-ext {__version__}: " + (f"{failed} failed" if failed else "healthy"))
    return int(failed > 0)


def _installed() -> Iterator[Check]:
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
            version = "a source tree"
        yield Check(package, "ok", version)


def _variables() -> Iterator[Check]:
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


def _discovery() -> Iterator[Check]:
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


def _signatures() -> Iterator[Check]:
    problems = overrides.problems()
    remedy = "upgrade sglang-moe-ext; until then SGLang stays stock"
    for problem in problems:
        yield Check("signatures", "fail", problem, remedy)
    if not problems:
        yield Check("signatures", "ok", f"those of SGLang {host.release()} are known")


def _liveness() -> Iterator[Check]:
    """Load plugins in a fresh process and look where SGLang's calls would go."""
    try:
        report = _probe()
    except (subprocess.SubprocessError, ValueError) as error:
        yield Check("live", "fail", str(error), "see the error; SGLANG_MOE_EXT=0 switches us off")
        return
    for target in overrides.TARGETS:
        is_ours = report["live"][target.path]
        found = "resolves to us" if is_ours else "resolves to SGLang's own"
        remedy = "" if is_ours else "; ".join(report["errors"]) or "see the checks above"
        name = f"live: {target.name.rpartition('.')[2]}"
        yield Check(name, "ok" if is_ours else "fail", found, remedy)


def _probe() -> dict[str, Any]:
    process = subprocess.run(
        [sys.executable, "-c", _PROBE], capture_output=True, text=True, timeout=PROBE_TIMEOUT_S
    )
    if process.returncode:
        last = process.stderr.strip().splitlines()[-1:] or ["no message"]
        raise ValueError(f"loading plugins ended with exit code {process.returncode}: {last[0]}")
    report: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return report


def _backends() -> Iterator[Check]:
    """Per device that is here and per model shape: who would serve it, and why not the others."""
    from sglang_moe_ext.ops import RouterSpec
    from sglang_moe_ext.ops.choose import explain

    for device in _devices():
        for model, shape in MODEL_SHAPES.items():
            spec = RouterSpec(*shape, device_type=device)
            refused, serving = [], "nothing"
            for backend, reason in explain(spec):
                if reason is None:
                    serving = backend
                    break
                refused.append(f"{backend}: {reason}")
            why = f" ({'; '.join(refused)})" if refused else ""
            yield Check(f"{device}: {model} {spec}", "ok", f"{serving}{why}")


def _devices() -> list[str]:
    import torch

    present = {"cpu": True, "cuda": torch.cuda.is_available(), "xpu": torch.xpu.is_available()}
    ours = env.DEFAULT_DEVICES if os.environ.get(f"{env.PREFIX}_DEVICES") is None else env.DEVICES
    return [device for device, is_here in present.items() if is_here and device in ours]
