"""The entry point that SGLang calls in each of its processes: check, install, verify."""

from __future__ import annotations

import functools
import logging
import sys
from typing import TYPE_CHECKING

# Imports of this package fail in `register`, where strict mode can be honoured.
from sglang_moe_ext import refusal
from sglang_moe_ext.notice import describe

if TYPE_CHECKING:
    from sglang_moe_ext.installation import Target

logger = logging.getLogger(__name__)


@functools.cache  # SGLang may load plugins twice; the second time changes nothing
def register() -> None:
    """Override SGLang's router and gate, or nothing, whatever fails on the way.

    Failing means: one error in the log and a stock server, or under
    SGLANG_MOE_EXT_STRICT=1 the end of the process. It is not tried again.
    """
    try:
        _register()
    except Exception as error:  # SGLang would log it and start a half-patched server
        _refuse([f"its register() failed: {describe(error)}"])


def _register() -> None:
    from sglang_moe_ext import env, host, overrides, trace

    try:
        settings = env.settings()
        if not settings.enabled:
            logger.info("%s=0: nothing is overridden", env.PREFIX)
            return
        problems = overrides.problems()
        if problems:
            _refuse(problems)
            return
        if settings.trace:
            trace.start(settings.trace)
    except env.EnvError as error:
        _refuse([str(error)])
        return
    import wrapt

    targets = overrides.targets()
    _install([target for target in targets if target.module in sys.modules])
    for module in {target.module for target in targets} - sys.modules.keys():
        later = [target for target in targets if target.module == module]
        wrapt.register_post_import_hook(functools.partial(_install, later), module)
    host.after_hooks(overrides.INSTALLED.verify)


def _refuse(reasons: list[str]) -> None:
    """Also takes back what is in place, and keeps import hooks from placing more."""
    overrides = sys.modules.get("sglang_moe_ext.overrides")
    if overrides is None:
        refusal.refuse(reasons)
    else:
        overrides.INSTALLED.refuse(reasons)


def _install(targets: list[Target], module: object = None) -> None:
    from sglang_moe_ext.overrides import INSTALLED

    try:
        INSTALLED.install(targets)
    except Exception as error:  # an import of SGLang's must not fail because of us
        names = " and ".join(target.path for target in targets)
        INSTALLED.refuse([f"{names}: not replaced, {describe(error)}"])
