"""Gradients as lists of tensors, one a weight: taken apart by loss, compared, projected, averaged over processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, distributed
from torch.nn import Parameter

Gradient = list[Tensor]


def trained(model: torch.nn.Module) -> list[Parameter]:
    """Return the weights that the optimizer may touch, in the model's order."""
    return [p for p in model.parameters() if p.requires_grad]


def of(loss: Tensor, weights: Sequence[Tensor]) -> Gradient:
    """Return the gradient of a loss, averaged over processes; for `prepare`, where the model is not yet distributed."""
    return average(list(torch.autograd.grad(loss, weights)))


def separate(
    groups: Iterable[Mapping[str, Tensor]], weights: Sequence[Parameter], accumulate: Callable[[Tensor], None]
) -> tuple[dict[str, Tensor], list[Gradient]]:
    """Run each group's backward by itself, one graph alive at a time, and leave .grad as it was.

    Args:
        groups: named scalars, a group at a time; the next group is computed after this one's backward.
        weights: the weights whose gradients count.
        accumulate: the trainer's backward (see Method.backward).

    Returns:
        every term, detached, by name; and one gradient a group.
    """
    before = _take(weights)
    terms: dict[str, Tensor] = {}
    gradients: list[Gradient] = []
    for group in groups:
        accumulate(torch.stack(list(group.values())).sum())
        gradients.append(
            [torch.zeros_like(w) if g is None else g for g, w in zip(_take(weights), weights, strict=True)]
        )
        terms |= {name: value.detach() for name, value in group.items()}
    for weight, gradient in zip(weights, before, strict=True):
        # DDP averages over processes in the last pass of a step alone, where it does not find the earlier ones.
        weight.grad = None if gradient is None else average([gradient])[0]
    return terms, gradients


def add(weights: Sequence[Parameter], gradient: Gradient) -> None:
    """Add a gradient to .grad."""
    for weight, each in zip(weights, gradient, strict=True):
        weight.grad = each if weight.grad is None else weight.grad + each


def dot(a: Gradient, b: Gradient) -> Tensor:
    """Return the inner product over all weights together, a scalar."""
    return torch.stack([(x * y).sum() for x, y in zip(a, b, strict=True)]).sum()


def combine(a: Gradient, b: Gradient, share_a: Tensor | float, share_b: Tensor | float) -> Gradient:
    """Return share_a * a + share_b * b."""
    return [share_a * x + share_b * y for x, y in zip(a, b, strict=True)]


def without_conflict(gradient: Gradient, other: Gradient) -> Gradient:
    """Return a gradient less its component along another, where their inner product is negative (PCGrad)."""
    square = dot(other, other)
    along = dot(gradient, other).clamp_max(0) / torch.where(square > 0, square, 1.0)
    return combine(gradient, other, 1.0, -along)


def average(tensors: Gradient) -> Gradient:
    """Average tensors over the processes, in place; a single process has nothing to do."""
    if distributed.is_available() and distributed.is_initialized():
        for tensor in tensors:
            distributed.all_reduce(tensor)
            tensor /= distributed.get_world_size()
    return tensors


def _take(weights: Sequence[Parameter]) -> list[Tensor | None]:
    gradients = [w.grad for w in weights]
    for weight in weights:
        weight.grad = None
    return gradients
