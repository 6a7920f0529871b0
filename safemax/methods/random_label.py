"""Random labelling: on forget rows, predict what the model itself predicts for another class."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from safemax.data.batches import Batch, Rows
from safemax.diffusion.model import Diffusion
from safemax.knobs import knob
from safemax.training.method import Method, Terms
from safemax.training.target_labels import classes, next_retained


def imitation_loss(
    model: Diffusion, rows: Rows, anchor: Tensor, *, null_drop: float = 0.0, target_dropout: bool = False
) -> Tensor:
    """Return the mean over pixels and batch of ||eps(x_t, t, c) - sg eps(x_t, t, anchor)||^2 at antithetic t.

    Args:
        model: predicts both; its present weights give the target, first and without a graph.
        rows: images to noise, and the labels whose prediction changes.
        anchor: labels whose prediction is the target, (N,) int64.
        null_drop: share of rows, and independently of targets, that get the null label instead.
        target_dropout: leave the dropout of a model in training on for the target.
    """
    t = model.times(len(rows))
    x_t = model.diffuse(rows.x0, t, torch.randn_like(rows.x0))
    target = _predict(model, x_t, t, model.drop_labels(anchor, null_drop), target_dropout)
    return (model(x_t, t, model.drop_labels(rows.c, null_drop)) - target).square().mean()


@torch.no_grad()
def _predict(model: Diffusion, x_t: Tensor, t: Tensor, c: Tensor, dropout: bool) -> Tensor:
    with nullcontext() if dropout else model.without_dropout():
        return model(x_t, t, c)


def anchors(model: Diffusion, batches: Callable[[int], Batch], rule: str) -> Tensor:
    """Return the labels that each label may be mapped to, (K, choices) int64, none of them forgotten.

    Args:
        model: the model that is unlearned, of K classes.
        batches: what the job trains on.
        rule: "next" gives the next retained class, (c + 1) mod K where one class is forgotten; "random" all of them.
    """
    _, retained = classes(batches)
    if rule == "next":
        return next_retained(model.num_classes, retained)[:, None].to(model.device)
    return torch.tensor(retained, device=model.device).repeat(model.num_classes, 1)


def drawn(choices: Tensor, c: Tensor) -> Tensor:
    """Return one of its label's choices for each row, (N,) int64, from choices (K, choices) and labels c (N,)."""
    return choices[c, torch.randint(choices.shape[1], c.shape, device=c.device)]


@dataclass
class RandomLabel(Method):
    """Random labelling (Graves et al., AAAI 2021) in the form that SalUn gives it for a DDPM, without SalUn's mask.

    Graves et al. draw a wrong label for every row; the official SalUn code takes the next class for all of them. The
    retain weight is SalUn's: 1e-3 on a loss summed over the 3 * 32 * 32 values of an image is 3.072 on our mean.
    """

    paper: ClassVar[str] = "Graves et al., arXiv:2010.10981; for diffusion Fan et al. (SalUn), arXiv:2310.12508"
    training: ClassVar[dict[str, object]] = {"steps": 1000, "batch_size": 256, "lr": 1e-4}

    anchor: str = knob(
        "random", "class whose prediction is imitated: one drawn for every row, or the next", choices=("random", "next")
    )
    retain_weight: float = knob(
        3.072,
        "weight of the retain loss, mean over pixels (SalUn: 1e-3 x 3072)",
        bounds=(0, 1e6),
        search=(0.3, 30),
        log=True,
    )
    forget_null_drop: float = knob(
        0.0, "share of forget rows and targets given the null label (SalUn: 0.1)", bounds=(0, 1)
    )
    retain_null_drop: float = knob(0.1, "share of retain rows given the null label", bounds=(0, 1))

    def validate(self, model: Diffusion) -> None:
        """Dropping labels needs a null label to drop them to."""
        if self.forget_null_drop or self.retain_null_drop:
            model.null(torch.zeros(1, dtype=torch.int64))

    def prepare(self, model: Diffusion, batches: Callable[[int], Batch]) -> None:
        """Look up which classes are retained."""
        self._anchors = anchors(model, batches, self.anchor)

    def losses(self, model: Diffusion, batch: Batch) -> Iterator[Terms]:
        """Denoise the retain rows, then imitate the anchor on the forget rows; one graph at a time."""
        retain = model.denoising_loss(batch.retain.x0, batch.retain.c, null_drop=self.retain_null_drop)
        yield {"retain": self.retain_weight * retain}
        anchor = drawn(self._anchors, batch.forget.c)
        yield {"forget": imitation_loss(model, batch.forget, anchor, null_drop=self.forget_null_drop)}

    def state(self) -> dict[str, Tensor]:
        return {"anchors": self._anchors}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self._anchors = state["anchors"]
