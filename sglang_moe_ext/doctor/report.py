"""A verdict, not a listing: one line per check, with the remedy where something is wrong."""

from __future__ import annotations

import importlib.util
import json
import logging
import textwrap
from dataclasses import asdict

from sglang_moe_ext import __version__
from sglang_moe_ext.doctor import host_checks
from sglang_moe_ext.doctor.check import Check

COLUMNS = 110


def examine() -> list[Check]:
    """Every check, in the order in which one would look."""
    has_sglang, has_torch = (importlib.util.find_spec(name) for name in ("sglang", "torch"))
    checks = [*host_checks.installed(), *host_checks.variables()]
    if has_sglang:
        checks += [
            *host_checks.discovery(),
            *host_checks.known_signatures(),
            *host_checks.finished_ids(),
            *host_checks.patches(),
        ]
        if has_torch:
            checks += host_checks.liveness()
    if has_torch:
        from sglang_moe_ext.doctor import router_checks

        checks += router_checks.routers()
    return checks


def run(as_json: bool) -> int:
    """Print the report; 0 if nothing failed, else 1."""
    # What would be logged is in the report.
    logging.getLogger("sglang_moe_ext").setLevel(logging.CRITICAL + 1)
    checks = examine()
    failed = sum(check.status == "fail" for check in checks)
    if as_json:
        print(json.dumps({"ok": not failed, "checks": [asdict(c) for c in checks]}, indent=2))
        return int(failed > 0)
    width = max(len(check.name) for check in checks)
    margin = " " * (6 + width + 2)
    for check in checks:
        head = f"{check.status:4}  {check.name.ljust(width)}  "
        fill = textwrap.TextWrapper(COLUMNS, initial_indent=head, subsequent_indent=margin)
        fill.break_on_hyphens = fill.break_long_words = False  # so that paths can be copied
        print(fill.fill(check.found))
        if check.remedy:
            print(f"{margin}-> {check.remedy}")
    print(f"\nsglang-moe-ext {__version__}: " + (f"{failed} failed" if failed else "healthy"))
    return int(failed > 0)
