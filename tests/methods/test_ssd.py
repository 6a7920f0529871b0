from __future__ import annotations

import pytest
import torch

from safemax.methods.ssd import SSD, dampening
from safemax.trainer import Training, fit
from tests import tiny


def dampened(**knobs: float) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return the weights before and after."""
    model = tiny.diffusion()
    before = [p.detach().clone() for p in model.parameters()]
    method = SSD(importance_batches=2, importance_draws=2, **knobs)
    fit(model, method, tiny.split(), (0,), Training(steps=0, batch_size=8, device="cpu"), progress=False)
    return before, [p.detach() for p in model.parameters()]


def test_a_weight_is_dampened_by_the_ratio_of_its_importances() -> None:
    # I_f / I_D = 20, 5, 20 and 0/0 with alpha = 10 and lambda = 1: 1/20, untouched, 1/20, untouched
    forget, whole = torch.tensor([20.0, 5.0, 40.0, 0.0]), torch.tensor([1.0, 1.0, 2.0, 0.0])
    torch.testing.assert_close(dampening(forget, whole, 10.0, 1.0), torch.tensor([0.05, 1.0, 0.05, 1.0]))


def test_dampening_never_enlarges() -> None:
    # lambda I_D / I_f = 30 / 20 is cut at 1
    assert dampening(torch.tensor([20.0]), torch.tensor([1.0]), 10.0, 30.0).item() == 1.0


def test_the_forgotten_labels_embedding_is_dampened_and_the_others_are_not() -> None:
    # A forget row's gradient enters that of all data by the share 1/3, so on the embedding of label 0, which retain rows
    # never touch, I_f / I_D is 9 exactly: above alpha = 5, and dampened to 1/9. Labels 1 and 2 have I_f = 0.
    before, after = dampened(alpha=5.0)
    model = tiny.diffusion()
    (i,) = [i for i, (name, _) in enumerate(model.named_parameters()) if "class_embedding" in name]
    torch.testing.assert_close(after[i][0], before[i][0] / 9, rtol=1e-3, atol=1e-7)
    assert torch.equal(after[i][1:], before[i][1:])


def test_an_alpha_beyond_every_ratio_leaves_the_model_alone() -> None:
    before, after = dampened(alpha=1e9)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_no_training_follows_by_default() -> None:
    assert SSD.training["steps"] == pytest.approx(0)
