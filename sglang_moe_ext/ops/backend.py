"""What a backend is: a module with `supports` and `prepare`."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from torch import Tensor

from sglang_moe_ext.ops.spec import RouterSpec

Run = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Prepared(NamedTuple):
    """A backend bound to one specification.

    run: (logits [T, E], bias [E] or [T, E]) -> (weights [T, K] float32, ids [T, K] int32).
        The dispatcher guarantees T >= 1, shapes, dtypes and one device as in the
        specification, columns of `logits` with stride 1 (rows may have any), and a
        contiguous bias. Outputs are new, contiguous and ordered by key descending.
    detail: what will run, in a few words, for the trace and `doctor`.
    """

    run: Run
    detail: str


class Backend(Protocol):
    def supports(self, spec: RouterSpec) -> str | None:
        """None if every call of this specification can be served, else the reason why not."""
        ...

    def prepare(self, spec: RouterSpec) -> Prepared:
        """Bind to a supported specification; once per specification and device, not per call."""
        ...
