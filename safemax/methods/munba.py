"""MUNBa: forget and retain bargain for the direction of every step, in the closed form of the Nash solution."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from safemax.data.batches import Batch
from safemax.diffusion.model import Diffusion
from safemax.knobs import knob
from safemax.methods.random_label import imitation_loss
from safemax.training import gradients, target_labels
from safemax.training.method import Method, Terms

# Weights of the retain and forget gradients where no bargain is possible (official code for Stable Diffusion).
FALLBACK = (1.0, 0.5)


def nash(retain_square: Tensor, cross: Tensor, forget_square: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weights (a_r, a_f) of the Nash bargaining solution of two players.

    They solve a_r (g_r.g_r a_r + g_r.g_f a_f) = 1 and a_f (g_f.g_f a_f + g_r.g_f a_r) = 1. With n = ||g|| and cos the
    cosine between the two, a = 1 / (n sqrt(1 + cos)): inserted in the first, (1 + cos) / (1 + cos) = 1, and so in the
    second. The step a_r g_r + a_f g_f then has norm sqrt(2) whatever the losses' scales. Opposite or vanishing
    gradients have no solution; 1 and 0.5 are returned there.

    Args:
        retain_square: g_r.g_r, a scalar.
        cross: g_r.g_f.
        forget_square: g_f.g_f.
    """
    norms = (retain_square * forget_square).sqrt()
    agreement = 1 + cross / torch.where(norms > 0, norms, 1.0)
    agree = (norms > 0) & (agreement > 1e-6)
    retain, forget = ((square * agreement).rsqrt() for square in (retain_square, forget_square))
    return torch.where(agree, retain, FALLBACK[0]), torch.where(agree, forget, FALLBACK[1])


@dataclass
class MUNBa(Method):
    """Machine unlearning via Nash bargaining (Wu and Harandi, ICCV 2025) over the two losses' gradients.

    The official code has Stable Diffusion and classifiers, no DDPM. Its losses for the former are taken over: denoising
    of retain rows, and on forget rows the prediction for the next class; both are means over pixels there too, and the
    solution does not depend on their scales. Its expression for a_f cancels for nearly orthogonal gradients and adds
    1e-8 to products of six gradient norms; the closed form used here does neither. Two backwards a step instead of
    three, and the two gradients stored. The official lr of 1e-5 fine-tunes Stable Diffusion; the lr of the DDPM family (SA,
    SalUn) is the default here.
    """

    paper: ClassVar[str] = "Wu and Harandi, arXiv:2411.15537"
    per_part: ClassVar[bool] = False
    training: ClassVar[dict[str, object]] = {"steps": 1000, "batch_size": 256, "lr": 1e-4}

    forget_null_drop: float = knob(0.0, "share of forget rows and targets given the null label", bounds=(0, 1))
    retain_null_drop: float = knob(0.1, "share of retain rows given the null label", bounds=(0, 1))

    _anchor: Tensor = field(init=False, repr=False, compare=False)

    def validate(self, model: Diffusion) -> None:
        """Dropping labels needs a null label to drop them to."""
        if self.forget_null_drop or self.retain_null_drop:
            model.null(torch.zeros(1, dtype=torch.int64))

    def prepare(self, model: Diffusion, batches: Callable[[int], Batch]) -> None:
        """Map each label to the next one that is retained."""
        _, retained = target_labels.classes(batches)
        self._anchor = target_labels.next_retained(model.num_classes, retained).to(model.device)

    def losses(self, model: Diffusion, batch: Batch) -> Iterator[Terms]:
        """Denoise the retain rows; predict on forget rows what the model predicts for their anchor."""
        yield {"retain": model.denoising_loss(batch.retain.x0, batch.retain.c, null_drop=self.retain_null_drop)}
        anchor = self._anchor[batch.forget.c]
        yield {"forget": imitation_loss(model, batch.forget, anchor, null_drop=self.forget_null_drop)}

    def backward(self, groups: Iterable[Terms], model: Diffusion, accumulate: Callable[[Tensor], None]) -> Terms:
        """Weigh the two gradients by the bargain."""
        weights = gradients.trained(model)
        terms, (retain, forget) = gradients.separate(groups, weights, accumulate)
        share = nash(*(gradients.dot(a, b) for a, b in ((retain, retain), (retain, forget), (forget, forget))))
        gradients.add(weights, gradients.combine(retain, forget, *share))
        return terms

    def state(self) -> dict[str, Tensor]:
        return {"anchor": self._anchor}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self._anchor = state["anchor"]
