"""Random labelling: on forget rows, predict what the model predicts for another class."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from safemax.data.batches import Batch, Batches, Rows
from safemax.diffusion.model import Diffusion
from safemax.knobs import knob
from safemax.method_tools.target_labels import next_retained
from safemax.training.method import Method, Terms


def imitation_loss(
    diffusion: Diffusion, rows: Rows, anchor: Tensor, *, null_drop: float = 0.0, target_dropout: bool = False
) -> Tensor:
    """Return the mean over pixels and batch of ||eps(x_t, t, c) - sg eps(x_t, t, anchor)||^2 at antithetic t.

    Args:
        diffusion: predicts both; the target comes first, from the current weights and without a graph.
        rows: images to noise, and the labels whose prediction is trained.
        anchor: labels whose prediction is the target, (N,) int64.
        null_drop: share of rows, and independently of targets, that are given the null label instead.
        target_dropout: keep dropout active for the target.
    """
    t = diffusion.times(len(rows))
    x_t = diffusion.diffuse(rows.x0, t, torch.randn_like(rows.x0))
    target = _predict(diffusion, x_t, t, diffusion.drop_labels(anchor, null_drop), target_dropout)
    return (diffusion(x_t, t, diffusion.drop_labels(rows.c, null_drop)) - target).square().mean()


@torch.no_grad()
def _predict(diffusion: Diffusion, x_t: Tensor, t: Tensor, c: Tensor, dropout: bool) -> Tensor:
    with nullcontext() if dropout else diffusion.without_dropout():
        return diffusion(x_t, t, c)


def anchors(diffusion: Diffusion, batches: Batches, rule: str) -> Tensor:
    """Return the anchors that each label may be mapped to, (K, choices) int64, none of them forgotten.

    Args:
        diffusion: the model, of K classes.
        batches: of the run; they know the retained classes.
        rule: "next" gives the next retained class, (c + 1) mod K if one class is forgotten; "random" gives all of them.
    """
    retained = batches.retain_classes
    if rule == "next":
        return next_retained(diffusion.num_classes, retained)[:, None].to(diffusion.device)
    return torch.tensor(retained, device=diffusion.device).repeat(diffusion.num_classes, 1)


def draw_anchors(choices: Tensor, c: Tensor) -> Tensor:
    """Draw an anchor for each row, (N,) int64, from the choices (K, choices) of its label c, (N,)."""
    return choices[c, torch.randint(choices.shape[1], c.shape, device=c.device)]


@dataclass
class RandomLabel(Method):
    """Random labelling (Graves et al., AAAI 2021) in SalUn's form for a DDPM, without SalUn's mask.

    Graves et al. draw a wrong label for every row; the official SalUn code uses the next class for all of them. The
    retain weight is SalUn's: 1e-3 on a loss summed over the 3 * 32 * 32 values of an image is 3.072 on our mean.
    """

    paper: ClassVar[str] = "Graves et al., arXiv:2010.10981; for diffusion Fan et al. (SalUn), arXiv:2310.12508"
    training: ClassVar[dict[str, object]] = {"steps": 1000, "batch_size": 256, "lr": 1e-4}

    anchor: str = knob(
        "random",
        "class whose prediction is the target: one drawn for every row, or the next",
        choices=("random", "next"),
    )
    retain_weight: float = knob(
        3.072,
        "weight of the retain loss, mean over pixels (SalUn: 1e-3 x 3072)",
        bounds=(0, 1e6),
        search=(0.3, 30),
        log=True,
    )
    forget_null_drop: float = knob(
        0.0, "share of forget rows and targets given the null label (SalUn: 0.1)", bounds=(0, 1), without_null=0
    )
    retain_null_drop: float = knob(0.1, "share of retain rows given the null label", bounds=(0, 1), without_null=0)

    def prepare(self, diffusion: Diffusion, batches: Batches) -> None:
        """List the anchors of each label."""
        self._anchors = anchors(diffusion, batches, self.anchor)

    def losses(self, diffusion: Diffusion, batch: Batch) -> Iterator[Terms]:
        """Denoise the retain rows, then predict the anchor's prediction on the forget rows; one graph at a time."""
        retain = diffusion.denoising_loss(batch.retain.x0, batch.retain.c, null_drop=self.retain_null_drop)
        yield {"retain": self.retain_weight * retain}
        anchor = draw_anchors(self._anchors, batch.forget.c)
        yield {"forget": imitation_loss(diffusion, batch.forget, anchor, null_drop=self.forget_null_drop)}

    def state(self) -> dict[str, Tensor]:
        return {"anchors": self._anchors}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self._anchors = state["anchors"]
