"""Float32 products of 16-bit operands, without a float32 copy of the weight."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

# For a few tokens a CPU widens so many bytes of the weight at a time, which stay in its caches;
# for more of them short products cost more than that saves (benchmarks/gate-cpu.csv).
CHUNK_BYTES = 2 << 20
FEW_TOKENS = 8


def linear_float32(hidden_states: Tensor, weight: Tensor) -> Tensor:
    """hidden_states [T, H] times weight [E, H] transposed: [T, E] float32.

    Products of 16-bit values are exact in float32; only the sum rounds.
    """
    hidden_states = hidden_states.float()
    T, (E, H) = hidden_states.shape[0], weight.shape
    rows = max(CHUNK_BYTES // (4 * H), 1)
    is_whole = (
        weight.dtype == torch.float32
        or weight.device.type != "cpu"
        or T > FEW_TOKENS
        or rows >= E
        or torch.compiler.is_compiling()
    )
    if is_whole:
        return linear(hidden_states, weight.float())
    chunks = [linear(hidden_states, weight[i : i + rows].float()) for i in range(0, E, rows)]
    return torch.cat(chunks, dim=1)
