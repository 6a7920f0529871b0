"""The diagonal of the Fisher information of the denoising loss, and the error of its estimate."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from safemax.data import row_share
from safemax.data.batches import Rows
from safemax.diffusion.model import Diffusion
from safemax.progress import bar


def diagonal(
    diffusion: Diffusion, rows: Rows, *, times: int = 0, batch: int = 125, null_drop: float = 0.0
) -> tuple[list[Tensor], float]:
    """Return F_i = E_x[(sum over all t of d loss(x, t) / d theta_i)^2] for each weight, and its relative error.

    Processes share the images, each with the numbers that one process alone would draw for it, and all get the sum.

    Only the sum of an image's gradients over t matters, so one pass takes many t of one image; the result equals that of
    one t at a time. With fewer t the square of the sum is estimated without bias (`squared_sum`).

    Args:
        diffusion: the model, in its current mode.
        rows: images and labels, treated as a sample of all images; the same in every process.
        times: steps t of an image; 0 means all, exactly. Fewer take at least two passes.
        batch: largest number of steps t in a pass.
        null_drop: share of labels replaced by the null label.

    Returns:
        F for the loss summed over pixels, at least 0, in the shapes of the weights; and its relative standard error,
        the expected L2 norm of the error divided by that of F, from the spread over images (nan for one image).
    """
    mean = [torch.zeros_like(p) for p in diffusion.parameters()]
    squares = torch.zeros((), dtype=torch.float64, device=diffusion.device)
    share, (sampled, total) = row_share.of_this_process(), _parts(diffusion.T, times or diffusion.T, batch)
    for i in bar(range(len(rows)), shown=sys.stderr.isatty(), desc="Fisher information", leave=False):
        x0, c = rows.x0[i], rows.c[i]
        parts = _drawn(diffusion, x0, c, sampled, total, null_drop)
        if i % share.world != share.rank:
            for _ in parts:  # another process's image, whose numbers are drawn and left
                pass
            continue
        square = squared_sum((timestep_gradient(diffusion, x0, *part) for part in parts), sampled, total)
        torch._foreach_add_(mean, square, alpha=1 / len(rows))
        squares += _squared_norm(square)
    row_share.summed([*mean, squares])
    # The mean of N draws has the variance (E||f||^2 - ||E f||^2) / (N - 1).
    variance = (squares / len(rows) - _squared_norm(mean)).clamp_min(0) / (len(rows) - 1 or math.nan)
    error = (variance / _squared_norm(mean)).sqrt().item()
    torch._foreach_clamp_min_(mean, 0)
    return mean, error


def squared_sum(parts: Iterable[list[Tensor]], sampled: int, total: int) -> list[Tensor]:
    """Estimate, entry by entry, the square of the sum of `total` parts from a sample without replacement.

    With n = sampled, N = total, s the sum of the sampled parts and q the sum of their squares, N / n q estimates the
    squares and N (N - 1) / (n (n - 1)) (s^2 - q) the products of different parts (Horvitz and Thompson, 1952). The
    estimate is unbiased, but an entry can be negative; n = N gives s^2 exactly.

    Args:
        parts: the sampled parts, each a list of tensors of the same shapes.
        sampled: their number, at least 2 if total is.
        total: number of all parts.
    """
    single, pair = total / sampled, total * (total - 1) / max(1, sampled * (sampled - 1))
    s: list[Tensor] = []
    q: list[Tensor] = []
    for part in parts:
        square = list(torch._foreach_mul(part, part))
        s = list(torch._foreach_add(s, part)) if s else part
        q = list(torch._foreach_add(q, square)) if q else square
    if sampled == total:
        return list(torch._foreach_mul(s, s))
    return [pair * each * each + (single - pair) * squares for each, squares in zip(s, q, strict=True)]


def timestep_gradient(diffusion: Diffusion, x0: Tensor, c: Tensor, t: Tensor, eps: Tensor) -> list[Tensor]:
    """Return the gradient by weight of ||eps - eps(x_t, t, c)||^2, summed over pixels and rows, all rows of one image.

    Args:
        diffusion: the model, in its current mode.
        x0: the image, (C, H, W) in [-1, 1].
        c: labels, (N,) int64 in [0, K].
        t: steps, (N,) int64.
        eps: noises, (N, C, H, W).
    """
    error = diffusion(diffusion.diffuse(x0.expand_as(eps), t, eps), t, c) - eps
    return list(torch.autograd.grad(error.square().sum(), list(diffusion.parameters())))


def _parts(T: int, times: int, batch: int) -> tuple[int, int]:  # noqa: N803 - the field's letter
    """Return how many parts of the steps t are sampled for an image, and how many parts there are."""
    if times >= T:
        return math.ceil(T / batch), math.ceil(T / batch)
    rows = min(batch, max(1, times // 2))
    total = math.ceil(T / rows)
    return min(total, max(2, round(times / rows))), total


def _drawn(
    diffusion: Diffusion, x0: Tensor, c: Tensor, sampled: int, total: int, null_drop: float
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield labels, t and noise of the sampled parts; part k has t = k, k + total, ..., so that all parts are alike."""
    for k in torch.randperm(total)[:sampled].tolist():
        t = torch.arange(k, diffusion.T, total, device=diffusion.device)
        labels = diffusion.drop_labels(c.expand(len(t)), null_drop)
        yield labels, t, torch.randn(len(t), *x0.shape, device=x0.device)


def _squared_norm(tensors: list[Tensor]) -> Tensor:
    return torch.stack(torch._foreach_norm(tensors)).double().square().sum()
