from __future__ import annotations

import pytest
import torch

from safemax.data.batches import Batch, Rows
from safemax.methods.neggrad_plus import NegGradPlus
from tests.support import tiny_models


def terms(method: NegGradPlus, error: float) -> dict[str, float]:
    """Return the terms for a model that misses eps by `error` in every pixel of every row."""
    diffusion, seen = tiny_models.diffusion(), []
    diffuse = diffusion.diffuse
    diffusion.diffuse = lambda x0, t, eps: seen.append(eps) or diffuse(x0, t, eps)  # type: ignore[func-returns-value, method-assign]
    diffusion.forward = lambda x_t, t, c: seen[-1] + error  # type: ignore[method-assign]
    rows = Rows(torch.zeros(2, 1, 8, 8), torch.zeros(2, dtype=torch.int64))
    return {
        name: value.item() for group in method.losses(diffusion, Batch(rows, rows)) for name, value in group.items()
    }


def test_the_terms_are_beta_retain_minus_the_rest_forget() -> None:
    # both losses are 0.6^2 = 0.36: 0.9 * 0.36 and -0.1 * 0.36
    assert terms(NegGradPlus(beta=0.9), 0.6) == pytest.approx({"retain": 0.324, "forget": -0.036})


def test_the_cap_holds_for_forget_rows_alone() -> None:
    # both losses are 2^2 = 4, forget capped at 1: 0.9 * 4 and -0.1 * 1
    assert terms(NegGradPlus(beta=0.9), 2.0) == pytest.approx({"retain": 3.6, "forget": -0.1})
