from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from safemax.data.batches import Batch, Batches, Rows
from safemax.diffusion.model import Diffusion
from safemax.methods.ssd import SSD, dampening
from safemax.training.settings import Training
from tests.support import tiny_models


def dampened(**knobs: float) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return the weights before and after."""
    diffusion = tiny_models.diffusion()
    before = [p.detach().clone() for p in diffusion.parameters()]
    method = SSD(importance_batches=2, importance_draws=2, **knobs)
    tiny_models.train(diffusion, method, Training(steps=0, batch_size=8, device="cpu"))
    return before, [p.detach() for p in diffusion.parameters()]


def test_a_weight_is_dampened_by_the_ratio_of_its_importances() -> None:
    # I_f / I_D = 20, 5, 20 and 0/0 with alpha = 10 and lambda = 1: 1/20, untouched, 1/20, untouched
    forget, whole = torch.tensor([20.0, 5.0, 40.0, 0.0]), torch.tensor([1.0, 1.0, 2.0, 0.0])
    torch.testing.assert_close(dampening(forget, whole, 10.0, 1.0), torch.tensor([0.05, 1.0, 0.05, 1.0]))


def test_dampening_never_enlarges() -> None:
    # lambda I_D / I_f = 30 / 20 is cut at 1
    assert dampening(torch.tensor([20.0]), torch.tensor([1.0]), 10.0, 30.0).item() == 1.0


def test_the_forgotten_labels_embedding_is_dampened_and_the_others_are_not() -> None:
    # Retain rows never touch the embedding of label 0, and forget rows no other's. Labels 1 and 2 have I_f = 0.
    before, after = dampened(alpha=1.0)
    diffusion = tiny_models.diffusion()
    (i,) = [i for i, (name, _) in enumerate(diffusion.named_parameters()) if "class_embedding" in name]
    assert (after[i][0].norm() / before[i][0].norm()).item() < 0.5
    assert torch.equal(after[i][1:], before[i][1:])


class Given(Batches):
    """Batches that a test has made, of three classes of which the first is forgotten."""

    forget_classes, retain_classes = (0,), (1, 2)

    def __init__(self, make: Callable[[int], Batch]) -> None:
        self.make = make

    def __call__(self, step: int) -> Batch:
        return self.make(step)


class OfPixels(SSD):
    """Its gradient is the mean of the rows' first pixels, so that importances can be had by hand."""

    def _gradient(self, diffusion: Diffusion, rows: Rows) -> list[torch.Tensor]:
        value = rows.x0[:, 0, 0, 0].mean() if len(rows) else torch.zeros(())
        return [value.expand_as(p) for p in diffusion.parameters()]


def test_a_batch_of_all_data_has_the_forget_classes_share_of_forget_rows() -> None:
    # 3 classes, so 2 of 6 rows are forget rows. Forget pixels 1 2 3 4 5 6, mean 3.5; all data: 1, 2 and retain pixels 0 3 6 9,
    # mean 21 / 6 = 3.5. Second batch: 6 5 4 3 2 1, and 6, 5 with 0 0 0 0: mean 11 / 6.
    def rows(c: int, *pixels: float) -> Rows:
        x0 = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 1, 8, 8)
        return Rows(x0, torch.full((len(pixels),), c))

    made = [
        Batch(rows(0, 1, 2, 3, 4, 5, 6), rows(1, 0, 3, 6, 9, 100, 100)),
        Batch(rows(0, 6, 5, 4, 3, 2, 1), rows(1, 0, 0, 0, 0, 100, 100)),
    ]
    forget, whole = OfPixels(importance_batches=2).importances(tiny_models.diffusion(), Given(lambda step: made[step]))
    assert forget[0].max().item() == pytest.approx(3.5**2 + 3.5**2)
    assert whole[0].max().item() == pytest.approx(3.5**2 + (11 / 6) ** 2)


def test_where_chance_rules_a_weight_of_the_class_alone_counts_as_many_times_as_the_class_is_rare() -> None:
    # Row gradients of mean 0 and variance V: I_f = V / n, and I_D = (k / n)^2 V / k = k V / n^2, so that I_f / I_D = n / k = 3.
    torch.manual_seed(0)

    def noise(step: int) -> Batch:
        labels = torch.zeros(6, dtype=torch.int64)
        return Batch(Rows(torch.randn(6, 1, 1, 1), labels), Rows(torch.zeros(6, 1, 1, 1), labels))

    forget, whole = OfPixels(importance_batches=4000).importances(tiny_models.diffusion(), Given(noise))
    assert (forget[0] / whole[0]).max().item() == pytest.approx(3, rel=0.1)


def test_an_alpha_beyond_every_ratio_leaves_the_model_alone() -> None:
    before, after = dampened(alpha=1e9)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_no_training_follows_by_default() -> None:
    assert SSD.training["steps"] == pytest.approx(0)
