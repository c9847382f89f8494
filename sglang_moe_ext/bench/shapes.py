"""Router shapes as people write them: experts/top-k and groups."""

from __future__ import annotations

import argparse
import re
from typing import NamedTuple

MODELS = {  # that route so
    "256/8g8tg4": "DeepSeek-V3",
    "384/8": "Kimi-K2",
    "128/6": "Nemotron-3-Nano",
    "256/8": "GLM-5, MiniMax-M2",
    "512/22": "Nemotron-3-Super",
    "896/16": "Kimi-K3",
}


class Shape(NamedTuple):
    """What `--shapes` names; `text` as the user wrote it."""

    text: str
    num_experts: int
    topk: int
    num_expert_group: int
    topk_group: int

    @property
    def title(self) -> str:
        return f"{self.text} ({MODELS[self.text]})" if self.text in MODELS else self.text


def parse_shapes(text: str) -> tuple[Shape, ...]:
    """`experts/top-k` with an optional `g<groups>tg<groups kept>`, or `all` those of MODELS.

    Raises argparse.ArgumentTypeError; whether such a router can exist is for RouterSpec to say.
    """
    if text == "all":
        return tuple(map(_parse, MODELS))
    return (_parse(text),)


def _parse(text: str) -> Shape:
    match = re.fullmatch(r"(\d+)/(\d+)(?:g(\d+)tg(\d+))?", text)
    if not match:
        raise argparse.ArgumentTypeError(
            f"found {text!r}, expected experts/top-k, with groups and groups kept where there "
            "are any (384/8, 256/8g8tg4), or all"
        )
    experts, topk, groups, kept = (int(part or 1) for part in match.groups())
    return Shape(text, experts, topk, groups, kept)


DEFAULT = (_parse("256/8g8tg4"), _parse("384/8"))  # one grouped, one not
