"""How the kernels touch memory, and what strict mode makes of it.

The real kernels read and write raw pointers as dense row-major arrays, whatever the
strides, the device or the alignment. Faithful mode does the same; strict mode raises
`UndefinedError`, so that a caller which passes has prevented it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .variants import SLACK, STRICT

POISON = {torch.float32: float("nan"), torch.int32: -777}


class UndefinedError(RuntimeError):
    """The real kernel would read, write or return something undefined."""


def undefined(what: str) -> UndefinedError:
    return UndefinedError(f"simulated sgl_kernel, strict: {what}; undefined on the device")


def check(condition: bool, message: str, error: type[Exception] = RuntimeError) -> None:
    if not condition:
        raise error(message)


def read(name: str, tensor: Tensor) -> Tensor:
    """What a kernel sees of an input, as a CPU tensor."""
    if STRICT:
        _check_pointer(name, tensor)
    if tensor.is_contiguous():
        return tensor.cpu()
    dense = torch.empty(tensor.shape).stride()
    return tensor.as_strided(tensor.shape, dense).cpu()


def output(name: str, tensor: Tensor, shape: tuple[int, int]) -> Tensor:
    """The memory that a kernel writes for a given output, filled with poison."""
    if STRICT:
        _check_pointer(name, tensor)
        if tuple(tensor.shape) != shape:
            raise undefined(f"{name} has shape {tuple(tensor.shape)}, the kernel writes {shape}")
    written = tensor.as_strided(shape, (shape[1], 1))
    return written.fill_(POISON[tensor.dtype])


def allocate(shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.full(shape, POISON[dtype], dtype=dtype, device=device)


def check_values(logits: Tensor, bias: Tensor | None, *, nan_is_documented: bool = False) -> None:
    if STRICT and logits.shape[0] == 0:
        raise undefined("launched for 0 tokens")
    nan = logits.isnan().any() or (bias is not None and bias.isnan().any())
    if nan and (STRICT or not nan_is_documented):
        raise undefined("NaN among the inputs")


def sigmoid(x: Tensor) -> Tensor:
    """float32 sigmoid, in the kernels' form 1 / (1 + exp(-x))."""
    x = x.float()
    score = 1 / (1 + (-x).exp())
    if SLACK:
        ulps = (x.view(torch.int32) % 5 - 2) * torch.finfo(torch.float32).eps
        score = score * (1 + ulps)
    return score


def ordered_sum(columns: Tensor) -> Tensor:
    """Sum over the columns [N, k] in float32, first to last."""
    total = torch.zeros(columns.shape[0])
    for column in columns.unbind(1):
        total = total + column
    return total[:, None]


def first_largest(choice: Tensor) -> tuple[Tensor, Tensor]:
    """Largest value of each row [N, E] and its lowest index, both [N]."""
    largest = choice.amax(1)
    index = torch.arange(choice.shape[1]).where(choice == largest[:, None], choice.shape[1])
    return largest, index.amin(1)


def _check_pointer(name: str, tensor: Tensor) -> None:
    if tensor.device.type != "xpu":
        raise undefined(f"{name} is on {tensor.device}, not on the device")
    if not tensor.is_contiguous():
        raise undefined(f"{name} has strides {tensor.stride()}, read as dense")
    if tensor.data_ptr() % 16:
        raise undefined(f"{name} isn't aligned to 16 bytes")
