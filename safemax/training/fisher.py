"""The diagonal of the Fisher information of the denoising loss, many t of an image in a pass, with its error."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from tqdm import tqdm

from safemax.data.batches import Rows
from safemax.diffusion.model import Diffusion


def diagonal(
    model: Diffusion, rows: Rows, *, times: int = 0, batch: int = 125, null_drop: float = 0.0
) -> tuple[list[Tensor], float]:
    """Return F_i = E_x[(sum over all t of d loss(x, t) / d theta_i)^2] by weight, and how far it may be from the truth.

    Of an image's t only the sum of the gradients counts, so a pass takes many t of one image: the result is that of one
    t at a time. With fewer t the square of the sum is estimated (`squared_sum`), without bias.

    Args:
        model: differentiated in the mode that it is in.
        rows: images and labels; they are taken as a sample of all images.
        times: steps t of an image; 0 takes all, exactly. Fewer are taken in at least two passes.
        batch: most steps t in a pass.
        null_drop: share of labels replaced by the null label.

    Returns:
        F for the loss summed over pixels, at least 0, in the shapes of the weights; and its relative standard error,
        the expected L2 norm of the error over that of F, from the spread over images (nan for one image).
    """
    mean = [torch.zeros_like(p) for p in model.parameters()]
    squares = torch.zeros((), dtype=torch.float64, device=model.device)
    for x0, c in tqdm(zip(rows.x0, rows.c, strict=True), "Fisher information", len(rows), leave=False, disable=None):
        drawn, total = _parts(model.T, times or model.T, batch)
        gradients = _gradients(model, x0, c, drawn, total, null_drop)
        square = squared_sum(gradients, drawn, total)
        torch._foreach_add_(mean, square, alpha=1 / len(rows))
        squares += _squared_norm(square)
    # The mean of N draws has the variance (E||f||^2 - ||E f||^2) / (N - 1).
    variance = (squares / len(rows) - _squared_norm(mean)).clamp_min(0) / (len(rows) - 1 or math.nan)
    error = (variance / _squared_norm(mean)).sqrt().item()
    torch._foreach_clamp_min_(mean, 0)
    return mean, error


def squared_sum(parts: Iterable[list[Tensor]], drawn: int, total: int) -> list[Tensor]:
    """Estimate, entry by entry, the square of the sum of `total` parts from some of them, drawn without replacement.

    With s the sum of the drawn parts and q the sum of their squares, total / drawn q estimates the squares and
    total (total - 1) / (drawn (drawn - 1)) (s^2 - q) the products of different parts (Horvitz and Thompson, 1952). The
    mean over draws is exact, at the price that an entry can be negative; drawn = total gives s^2 itself.

    Args:
        parts: the drawn ones, each a list of tensors of the same shapes.
        drawn: how many those are, at least 2 where total is.
        total: how many there are.
    """
    single, pair = total / drawn, total * (total - 1) / max(1, drawn * (drawn - 1))
    s: list[Tensor] = []
    q: list[Tensor] = []
    for part in parts:
        square = list(torch._foreach_mul(part, part))
        s = list(torch._foreach_add(s, part)) if s else part
        q = list(torch._foreach_add(q, square)) if q else square
    if drawn == total:
        return list(torch._foreach_mul(s, s))
    return [pair * each * each + (single - pair) * squares for each, squares in zip(s, q, strict=True)]


def timestep_gradient(model: Diffusion, x0: Tensor, c: Tensor, t: Tensor, eps: Tensor) -> list[Tensor]:
    """Return the gradient by weight of ||eps - eps(x_t, t, c)||^2, summed over pixels and rows, all rows of one image.

    Args:
        model: differentiated in the mode that it is in.
        x0: the image, (C, H, W) in [-1, 1].
        c: labels, (N,) int64 in [0, K].
        t: steps, (N,) int64.
        eps: noises, (N, C, H, W).
    """
    error = model(model.diffuse(x0.expand_as(eps), t, eps), t, c) - eps
    return list(torch.autograd.grad(error.square().sum(), list(model.parameters())))


def _parts(T: int, times: int, batch: int) -> tuple[int, int]:  # noqa: N803 - the field's letter
    """Return how many parts of all t are drawn for an image, and how many there are."""
    if times >= T:
        return math.ceil(T / batch), math.ceil(T / batch)
    rows = min(batch, max(1, times // 2))
    total = math.ceil(T / rows)
    return min(total, max(2, round(times / rows))), total


def _gradients(
    model: Diffusion, x0: Tensor, c: Tensor, drawn: int, total: int, null_drop: float
) -> Iterator[list[Tensor]]:
    """Yield the gradients of the drawn parts; part k has t = k, k + total, ..., so that parts resemble each other."""
    for k in torch.randperm(total)[:drawn].tolist():
        t = torch.arange(k, model.T, total, device=model.device)
        labels = model.drop_labels(c.expand(len(t)), null_drop)
        yield timestep_gradient(model, x0, labels, t, torch.randn(len(t), *x0.shape, device=x0.device))


def _squared_norm(tensors: list[Tensor]) -> Tensor:
    return torch.stack(torch._foreach_norm(tensors)).double().square().sum()
