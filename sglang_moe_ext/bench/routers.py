"""What is timed: our backends, the peers and the floor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

from sglang_moe_ext.bench.peers import PEERS, Bind, UnavailableError
from sglang_moe_ext.limits import PORTABLE, PREFERENCE

if TYPE_CHECKING:
    from torch import Tensor

    from sglang_moe_ext.ops.backend import Run
    from sglang_moe_ext.ops.spec import RouterSpec

JUDGE = "reference"  # float64 on the CPU, not timed
OURS = tuple(dict.fromkeys(n for n in chain(*PREFERENCE.values(), PORTABLE) if n != JUDGE))


class Router(NamedTuple):
    name: str
    role: str  # ours, peer or floor
    bind: Bind


def routers(peers: Sequence[str]) -> Iterator[Router]:
    """In the order of the table."""
    for name in OURS:
        yield Router(name, "ours", _backend(name))
    for name in peers:
        yield Router(name, "peer", PEERS[name])
    yield Router("sigmoid", "floor", _sigmoid)


def _backend(name: str) -> Bind:
    def bind(spec: RouterSpec) -> Run:
        from sglang_moe_ext.ops import choose

        try:
            prepared = choose.prepare(name, spec)
        except ImportError as error:
            raise UnavailableError(str(error)) from error
        if isinstance(prepared, str):
            raise UnavailableError(prepared)
        return prepared.run

    return bind


def _sigmoid(spec: RouterSpec) -> Run:
    """One pass over the logits and nothing else."""

    def run(logits: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        return logits.sigmoid(), bias

    return run
