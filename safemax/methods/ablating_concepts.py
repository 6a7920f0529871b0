"""Ablating concepts: on images of an anchor class, train the forgotten label to predict what the anchor predicts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from safemax.data.batches import Batch, Batches, to_x0
from safemax.data.class_names import parse_classes
from safemax.diffusion.model import Diffusion
from safemax.errors import InputError
from safemax.knobs import knob
from safemax.method_tools.target_labels import next_retained
from safemax.training.method import Method, Terms


@dataclass
class AblatingConcepts(Method):
    """Concept ablation (Kumari et al., ICCV 2023) for a class label: p(x | forgotten) becomes the anchor's distribution.

    x_t is a noised image of the anchor class. Variant `model` regresses eps(x_t, forgotten) on the current prediction for
    the anchor, without a gradient through it; `noise` regresses it on the noise itself. Losses are means over pixels, as
    in the official code. That code differs in three points: it draws its anchor images from the model (here they are
    real); it trains cross-attention, which this network lacks (here all weights, at the lr of the DDPM family); and its
    optional prior term, of weight 1, denoises anchor images (here images of all retained classes).
    """

    paper: ClassVar[str] = "Kumari et al., arXiv:2303.13516"
    training: ClassVar[dict[str, object]] = {"steps": 1000, "batch_size": 256, "lr": 1e-4}

    anchor: str = knob(
        "next", "class that the forgotten label is mapped to, by name or index; next means the next retained one"
    )
    variant: str = knob(
        "model", "target on anchor images: the prediction for the anchor, or the noise", choices=("model", "noise")
    )
    anchor_images: int = knob(500, "images of the anchor class to train on", bounds=(1, 1_000_000))
    retain_weight: float = knob(
        1.0, "weight of the prior term (official: 1)", bounds=(0, 1e6), search=(0.1, 10), log=True
    )
    retain_null_drop: float = knob(0.1, "share of retain rows given the null label", bounds=(0, 1), without_null=0)

    _label: Tensor = field(init=False, repr=False, compare=False)
    _images: Tensor = field(init=False, repr=False, compare=False)

    def validate(self, diffusion: Diffusion) -> None:
        """Check that the anchor is a class of the model, too."""
        super().validate(diffusion)
        if self.anchor != "next" and len(parse_classes(self.anchor, diffusion.class_names)) != 1:
            raise InputError(f"anchor = {self.anchor!r} names several classes; anchor must be one class or next")

    def prepare(self, diffusion: Diffusion, batches: Batches) -> None:
        """Choose the anchor and collect images of it from the retain rows of successive batches."""
        label = self._choose(diffusion, batches.forget_classes, batches.retain_classes)
        whole, images = batches.whole(), list[Tensor]()
        step = 0
        while sum(len(each) for each in images) < self.anchor_images:
            rows = whole(step).retain
            images.append(diffusion.stored(rows.x0[rows.c == label]))
            step += 1
        self._images = torch.cat(images)[: self.anchor_images]
        self._label = torch.tensor(label, device=self._images.device)

    def losses(self, diffusion: Diffusion, batch: Batch) -> Iterator[Terms]:
        """Train on as many anchor images as there are forget rows, under the forget rows' labels; then the prior term."""
        yield {"forget": self._ablation_loss(diffusion, batch.forget.c)}
        retain = diffusion.denoising_loss(batch.retain.x0, batch.retain.c, null_drop=self.retain_null_drop)
        yield {"retain": self.retain_weight * retain}

    def state(self) -> dict[str, Tensor]:
        return {"label": self._label, "images": self._images}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self._label, self._images = state["label"], state["images"]

    def _choose(self, diffusion: Diffusion, forgotten: tuple[int, ...], retained: tuple[int, ...]) -> int:
        if self.anchor == "next":
            return int(next_retained(diffusion.num_classes, retained)[forgotten[0]])
        (label,) = parse_classes(self.anchor, diffusion.class_names)
        if label not in retained:
            names = ", ".join(diffusion.class_names[k] for k in retained)
            raise InputError(f"anchor = {self.anchor!r} is not retained in this run; retained: {names}")
        return label

    def _ablation_loss(self, diffusion: Diffusion, c: Tensor) -> Tensor:
        chosen = torch.randint(len(self._images), c.shape, device=c.device)
        x0, t = to_x0(self._images[chosen]), diffusion.times(len(c))
        eps = torch.randn_like(x0)
        x_t = diffusion.diffuse(x0, t, eps)
        target = eps if self.variant == "noise" else self._anchor_prediction(diffusion, x_t, t)
        return (diffusion(x_t, t, c) - target).square().mean()

    @torch.no_grad()
    def _anchor_prediction(self, diffusion: Diffusion, x_t: Tensor, t: Tensor) -> Tensor:
        with diffusion.without_dropout():
            return diffusion(x_t, t, self._label.expand(len(t)))
