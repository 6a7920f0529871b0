from __future__ import annotations

import pytest
import torch

from safemax.data.batches import Rows
from safemax.diffusion.model import Diffusion
from safemax.methods.gradient_ascent import GradientAscent, ascent_loss
from tests.support import tiny_models


def predicting(error: list[float]) -> tuple[Diffusion, Rows, torch.Tensor]:
    """Return a model whose prediction misses eps by `error`, a value a row; as many rows; and the errors as a leaf."""
    diffusion, seen = tiny_models.diffusion(), []
    diffuse = diffusion.diffuse
    diffusion.diffuse = lambda x0, t, eps: seen.append(eps) or diffuse(x0, t, eps)  # type: ignore[func-returns-value, method-assign]
    miss = torch.tensor(error, requires_grad=True)
    diffusion.forward = lambda x_t, t, c: seen[-1] + miss.view(-1, 1, 1, 1)  # type: ignore[method-assign]
    return diffusion, Rows(torch.zeros(len(error), 1, 8, 8), torch.zeros(len(error), dtype=torch.int64)), miss


def test_a_row_counts_up_to_the_cap() -> None:
    # losses .5^2 and 3^2; the second is capped at 1: -(0.25 + 1) / 2
    diffusion, rows, _ = predicting([0.5, 3.0])
    assert ascent_loss(diffusion, rows, cap=1.0).item() == pytest.approx(-0.625)


def test_without_a_cap_it_is_minus_the_denoising_loss() -> None:
    # -(0.25 + 9) / 2
    diffusion, rows, _ = predicting([0.5, 3.0])
    assert ascent_loss(diffusion, rows, cap=1e6).item() == pytest.approx(-4.625)


def test_a_row_beyond_the_cap_has_no_gradient() -> None:
    # The derivative of -(x^2 + y^2) / 2 at x = 0.5 is -0.5; y = 3 is beyond the cap.
    diffusion, rows, miss = predicting([0.5, 3.0])
    (gradient,) = torch.autograd.grad(ascent_loss(diffusion, rows, cap=1.0), miss)
    torch.testing.assert_close(gradient, torch.tensor([-0.5, 0.0]))


def test_retain_rows_are_not_asked_for() -> None:
    assert not GradientAscent.needs_retain
    (terms,) = GradientAscent().losses(tiny_models.diffusion(), tiny_models.batch(4, 0))
    assert list(terms) == ["forget"]
