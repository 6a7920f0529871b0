"""The order of weights in memory: channels last, as a GPU's convolutions in bf16 want them, or first, as torch makes them.

The numbers are the same; only sums may be taken in another order. Fused optimizers walk through weight, gradient and moments
as they lie in memory, so that all of them must lie alike: on a CPU, others give wrong numbers without an error.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import Parameter


def lay_out(network: nn.Module, *, channels_last: bool) -> None:
    """Let the weights of convolutions lie channels last, or first; parameters stay the same objects."""
    order = torch.channels_last if channels_last else torch.contiguous_format
    network.to(memory_format=order)  # type: ignore[call-overload]


def like(tensor: Tensor, weight: Tensor) -> Tensor:
    """Return a tensor of a weight's shape in the order of that weight; itself where it lies so."""
    if tensor.stride() == weight.stride():
        return tensor
    return torch.empty_like(weight, dtype=tensor.dtype, device=tensor.device).copy_(tensor)


@torch.no_grad()
def align_gradients(weights: Iterable[Parameter]) -> None:
    """Let each gradient lie as its weight does: methods may set one that they computed from what a cache or a checkpoint held."""
    for weight in weights:
        if weight.grad is not None:
            weight.grad = like(weight.grad, weight)


@torch.no_grad()
def align_moments(optimizer: torch.optim.Optimizer) -> None:
    """Let what an optimizer has loaded lie as its weights do: files hold tensors channels first."""
    for weight, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == weight.shape:
                state[name] = like(value, weight)
