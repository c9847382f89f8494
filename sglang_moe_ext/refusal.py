"""What is said when SGLang stays stock; under strict, the end of the process."""

from __future__ import annotations

import logging

from sglang_moe_ext import __version__, env, host, notice

logger = logging.getLogger(__name__)


def refuse(reasons: list[str]) -> None:
    """One error with the reasons. Raises SystemExit under SGLANG_MOE_EXT_STRICT=1."""
    message = (
        f"sglang-moe-ext {__version__} is NOT active (SGLang {host.release()} stays stock): "
        f"{'; '.join(reasons)}. Run `python -m sglang_moe_ext doctor`, "
        f"or set {env.PREFIX}=0 to silence this."
    )
    notice.once(logger.error, message)
    if env.is_strict():
        raise SystemExit(message)
