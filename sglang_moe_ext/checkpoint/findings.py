"""What an inspection says: findings, one row per routed layer, and the report of both."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from sglang_moe_ext.checkpoint.routing import Routing

PROBLEM: Literal["problem"] = "problem"
NOTE: Literal["note"] = "note"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing found. Problems make a checkpoint unhealthy, notes do not.

    layer: "3", "61 mtp", or None if it concerns the whole checkpoint.
    subject: the tensor, file or configuration key.
    """

    layer: str | None
    severity: Literal["problem", "note"]
    subject: str
    found: str
    expected: str
    remedy: str


@dataclass(slots=True)
class LayerReport:
    """The router of one layer; None where the checkpoint does not say.

    bias_low, bias_high: over the finite values. bias_distinct, bias_distinct_bf16: how many
    different values there are, and would be after rounding to bfloat16. bias_rounded: the
    values have been through a 16-bit type, whatever they are stored as.
    moved_by_rounding: estimated share of tokens, 0..1, that the bias in bfloat16 would send to
    another set of experts (see estimate.py); of a bias rounded before, what that has moved.
    bias: the values, for plots.
    """

    layer: str
    gate_dtype: str | None = None
    gate_shape: tuple[int, ...] | None = None
    gate_quantized: bool = False
    bias_dtype: str | None = None
    bias_shape: tuple[int, ...] | None = None
    bias_low: float | None = None
    bias_high: float | None = None
    bias_distinct: int | None = None
    bias_distinct_bf16: int | None = None
    bias_nonfinite: int = 0
    bias_rounded: bool = False
    moved_by_rounding: float | None = None
    bias: npt.NDArray[np.float32] | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class LayerComparison:
    """The router of one layer beside that of the base checkpoint.

    gate, bias: what became of the base's tensor, in words. moved: estimated share of tokens,
    0..1, that the two checkpoints send to different sets of experts.
    """

    layer: str
    gate: str
    bias: str
    moved: float | None


@dataclass(slots=True)
class Report:
    """Everything that an inspection, or a comparison with `base`, has to say.

    serving: per device, the backend that would serve this routing and why, as text.
    """

    path: Path
    files: int = 0
    size_bytes: int = 0
    routing: Routing | None = None
    layers: list[LayerReport] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    base: Path | None = None
    comparison: list[LayerComparison] = field(default_factory=list)
    serving: dict[str, str] = field(default_factory=dict)

    @property
    def healthy(self) -> bool:
        return all(finding.severity != PROBLEM for finding in self.findings)
