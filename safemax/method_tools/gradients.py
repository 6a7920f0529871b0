"""Gradients as lists of tensors, one per weight: by loss, compared, projected, averaged over processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

from safemax.data import row_share
from safemax.data.batches import Rows
from safemax.diffusion.model import Diffusion
from safemax.diffusion.row_noise import RowNoise

Gradient = list[Tensor]


def trained(module: torch.nn.Module) -> list[Parameter]:
    """Return the weights that the optimizer updates, in the module's order."""
    return [p for p in module.parameters() if p.requires_grad]


def of_rows(diffusion: Diffusion, rows: Rows, loss: Callable[[Diffusion, Rows], Tensor]) -> Gradient:
    """Return the gradient by all weights of a loss that is a mean over rows; for `prepare`, in every process alike.

    The processes share the rows, and all get the sum. Each row has the noise that one process alone would give it.

    Args:
        diffusion: the model, not yet distributed.
        rows: of the whole batch, at least one, the same in every process.
        loss: of some rows, a mean; it draws by the model's own `times`, `noise_like`, `drop_labels` or `denoising_loss`.
    """
    weights, share = list(diffusion.parameters()), row_share.of_this_process()
    if share.world == 1:
        return list(torch.autograd.grad(loss(diffusion, rows), weights))
    count = share.counts(len(rows))[share.rank]
    mine = share.rows if count else slice(0, 1)  # a row without weight, where there are fewer rows than processes
    with diffusion.drawing(RowNoise(mine, len(rows), share.world)):
        part = loss(diffusion, rows[mine]) * (count / len(rows))
    return row_share.summed(list(torch.autograd.grad(part, weights)))


def separate(
    groups: Iterable[Mapping[str, Tensor]], weights: Sequence[Parameter], accumulate: Callable[[Tensor], None]
) -> tuple[dict[str, Tensor], list[Gradient]]:
    """Compute each group's gradient separately, with one graph at a time, and leave .grad unchanged.

    Args:
        groups: what `Method.losses` yields.
        weights: the weights to differentiate by.
        accumulate: adds the gradient of a scalar to .grad (see Method.backward).

    Returns:
        every term, detached, by name; and one gradient per group.
    """
    before = _pop_gradients(weights)
    terms: dict[str, Tensor] = {}
    gradients: list[Gradient] = []
    for group in groups:
        accumulate(torch.stack(list(group.values())).sum())
        gradients.append(
            [torch.zeros_like(w) if g is None else g for g, w in zip(_pop_gradients(weights), weights, strict=True)]
        )
        terms |= {name: value.detach() for name, value in group.items()}
    for weight, gradient in zip(weights, before, strict=True):
        # DDP averages only what the last pass of a step adds to .grad; the earlier passes are averaged here.
        weight.grad = None if gradient is None else average([gradient])[0]
    return terms, gradients


def add(weights: Sequence[Parameter], gradient: Gradient) -> None:
    """Add a gradient to .grad."""
    pairs = [(w.grad, each) for w, each in zip(weights, gradient, strict=True) if w.grad is not None]
    sums = iter(torch._foreach_add(*map(list, zip(*pairs, strict=True))) if pairs else ())
    for weight, each in zip(weights, gradient, strict=True):
        weight.grad = each if weight.grad is None else next(sums)


def dot(a: Gradient, b: Gradient) -> Tensor:
    """Return the inner product over all weights, a scalar."""
    return torch.stack([product.sum() for product in torch._foreach_mul(a, b)]).sum()


def combine(a: Gradient, b: Gradient, share_a: Tensor | float, share_b: Tensor | float) -> Gradient:
    """Return share_a * a + share_b * b."""
    combined = list(torch._foreach_mul(a, share_a))
    torch._foreach_add_(combined, torch._foreach_mul(b, share_b))
    return combined


def without_conflict(gradient: Gradient, other: Gradient) -> Gradient:
    """Return a gradient without its component along another if their inner product is negative (PCGrad), else unchanged."""
    square = dot(other, other)
    along = dot(gradient, other).clamp_max(0) / torch.where(square > 0, square, 1.0)
    return combine(gradient, other, 1.0, -along)


def average(tensors: Gradient) -> Gradient:
    """Average tensors over the processes, in place, and return them."""
    world = row_share.of_this_process().world
    for tensor in row_share.summed(tensors):
        tensor /= world
    return tensors


def _pop_gradients(weights: Sequence[Parameter]) -> list[Tensor | None]:
    """Return the weights' .grad and clear it."""
    gradients = [w.grad for w in weights]
    for weight in weights:
        weight.grad = None
    return gradients
