"""How many tokens another bias would send to other experts: an estimate, by simulation.

Hidden states are drawn once, Gaussian with root mean square 1 (what RMSNorm leaves), scaled
by the layer's norm weight and multiplied with its gate weight; both biases then route the
same logits. Real hidden states have structure that this has not, so the shares tell a bias
that survives rounding from one that does not, not the third digit.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from sglang_moe_ext.checkpoint.routing import Routing
from sglang_moe_ext.checkpoint.tensors import Floats

TOKENS = 512
SEED = 0
METHOD = (
    f"share of tokens whose set of experts changes, estimated on {TOKENS} simulated tokens "
    f"(Gaussian hidden states of RMS 1, times norm weight and gate weight, seed {SEED}); a bias "
    "rounded before is compared with one drawn from what rounds to it"
)


@lru_cache(maxsize=1)
def _hidden_states(size: int) -> Floats:
    states = np.random.default_rng(SEED).standard_normal((TOKENS, size), dtype=np.float32)
    states /= np.sqrt((states**2).mean(axis=1, keepdims=True))
    return states


def simulated_scores(gate: Floats, norm: Floats | None, routing: Routing) -> Floats:
    """Scores [TOKENS, E] for a gate weight [E, H] and, if known, its norm weight [H]."""
    weight = gate if norm is None else gate * norm
    logits = _hidden_states(gate.shape[1]) @ weight.T
    if routing.scoring == "softmax":
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True), np.float32)
    with np.errstate(over="ignore"):  # exp(-x) is infinite where the sigmoid is 0
        return np.asarray(1 / (1 + np.exp(-logits)), np.float32)


def selected(keys: Floats, routing: Routing) -> npt.NDArray[np.bool_]:
    """Mask [T, E] of the experts with the largest keys [T, E], the lower id first on ties.

    The rules of ops/reference.py for finite keys, here without torch.
    """
    T, E, G = keys.shape[0], routing.num_experts, routing.num_expert_group
    if G > 1:
        grouped = keys.reshape(T, G, E // G)
        score = np.partition(grouped, -min(2, E // G), axis=2)[:, :, -2:].sum(axis=2)
        kept = np.repeat(_largest(score, routing.topk_group), E // G, axis=1)
        keys = np.where(kept, keys, np.float32(-np.inf))
    return _largest(keys, routing.topk)


def _largest(values: Floats, count: int) -> npt.NDArray[np.bool_]:
    order = np.argsort(-values, axis=1, kind="stable")[:, :count]
    mask = np.zeros(values.shape, dtype=bool)
    np.put_along_axis(mask, order, True, axis=1)
    return mask


def share_differing(one: npt.NDArray[np.bool_], other: npt.NDArray[np.bool_]) -> float:
    return float((one != other).any(axis=1).mean())


def moved_by_rounding(
    scores: Floats, bias: Floats, routing: Routing, stored_bits: int | None
) -> float:
    """Share of tokens that a rounded bias moves, for scores [T, E] and a bias [E].

    stored_bits: None for an exact bias, which is rounded to bfloat16 to see; else the bits of
    significand that `bias` still has, and an exact one is drawn from what rounds to it.
    """
    if stored_bits is None:
        other = round_to_bfloat16(bias)
    else:
        step = np.where(bias == 0, 0, np.ldexp(1.0, np.frexp(bias)[1] - stored_bits))
        error = np.random.default_rng(SEED).uniform(-0.5, 0.5, bias.shape)
        other = (bias + step * error).astype(np.float32)
    return share_differing(selected(scores + bias, routing), selected(scores + other, routing))


def round_to_bfloat16(values: Floats) -> Floats:
    """To the nearest bfloat16, ties to even; finite values."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return rounded.astype(np.uint32).view(np.float32)
