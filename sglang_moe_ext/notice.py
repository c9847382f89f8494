"""Log a message once: in this process, and not again in the workers that it spawns."""

from __future__ import annotations

import functools
import hashlib
import multiprocessing
import os
from collections.abc import Callable

# Not with our prefix: it is no setting. A server's workers inherit the environment.
_SAID = "_SGLANG_MOE_EXT_SAID"


def once(log: Callable[[str], None], message: str) -> None:
    """`log(message)`, unless this process or the one that spawned it said so already."""
    digest = hashlib.sha256(message.encode()).hexdigest()[:16]
    said = _said()
    if digest in said:
        return
    said.add(digest)
    os.environ[_SAID] = " ".join(sorted(said))
    log(message)


def describe(error: BaseException, limit: int = 400) -> str:
    """An exception in one line: compilers raise whole pages."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:limit]}{'…' if len(text) > limit else ''}"


@functools.cache
def _said() -> set[str]:
    # A server started by a program that uses the plugin, too, has a log of its own.
    is_worker = multiprocessing.parent_process() is not None
    return set(os.environ.get(_SAID, "").split()) if is_worker else set()
