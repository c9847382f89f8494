"""The entry point that SGLang calls in each of its processes: check, install, verify."""

from __future__ import annotations

import functools
import logging
import sys

import wrapt

from sglang_moe_ext import env, host, overrides, trace
from sglang_moe_ext.overrides import INSTALLED, Target

logger = logging.getLogger(__name__)


@functools.cache  # SGLang may load plugins twice; the second time changes nothing
def register() -> None:
    """Override SGLang's router and gate, or nothing.

    SGLang logs whatever a plugin raises and goes on, so failing means: one error in the log
    and a stock server, or under SGLANG_MOE_EXT_STRICT=1 the end of the process.
    """
    try:
        settings = env.settings()
    except env.EnvError as error:
        INSTALLED.refuse([str(error)])
        return
    if not settings.enabled:
        logger.info("%s=0: nothing is overridden", env.PREFIX)
        return
    problems = overrides.problems()
    if problems:
        INSTALLED.refuse(problems)
        return
    if settings.trace:
        trace.start(settings.trace)
    targets = overrides.targets()
    _install([target for target in targets if target.module in sys.modules])
    for module in {target.module for target in targets} - sys.modules.keys():
        later = [target for target in targets if target.module == module]
        wrapt.register_post_import_hook(functools.partial(_install, later), module)
    host.after_hooks(INSTALLED.verify)


def _install(targets: list[Target], module: object = None) -> None:
    try:
        INSTALLED.install(targets)
    except Exception as error:  # an import of SGLang's must not fail because of us
        names = " and ".join(target.path for target in targets)
        INSTALLED.refuse([f"{names}: not replaced, {type(error).__name__}: {error}"])
