"""Ablating concepts: on images of an anchor class, the forgotten label learns what the anchor's label predicts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from safemax.data.batches import Batch, parse_classes, to_float, to_uint8
from safemax.diffusion.model import Diffusion
from safemax.errors import InputError
from safemax.knobs import knob
from safemax.training import target_labels
from safemax.training.method import Method, Terms


@dataclass
class AblatingConcepts(Method):
    """Concept ablation (Kumari et al., ICCV 2023) by class label: p(x | forgotten) becomes the anchor's distribution.

    x_t is noised from images of the anchor class. `model` regresses eps(x_t, forgotten) on the present weights'
    prediction for the anchor, no gradient through it; `noise` regresses it on the noise itself. All means over pixels,
    as in the official code, which draws its anchor images from the model (here they are real), trains cross-attention,
    of which this network has none (here all weights, at the lr of the DDPM family), and has as optional prior term,
    weight 1, the denoising of anchor images (here of all retained classes).
    """

    paper: ClassVar[str] = "Kumari et al., arXiv:2303.13516"
    training: ClassVar[dict[str, object]] = {"steps": 1000, "batch_size": 256, "lr": 1e-4}

    anchor: str = knob(
        "next", "class, by name or index, that the forgotten label is mapped to; next takes the next retained one"
    )
    variant: str = knob(
        "model", "target on the anchor's images: the anchor's prediction, or the noise", choices=("model", "noise")
    )
    anchor_images: int = knob(500, "images of the anchor class that are kept", bounds=(1, 1_000_000))
    retain_weight: float = knob(
        1.0, "weight of the prior term (official: 1)", bounds=(0, 1e6), search=(0.1, 10), log=True
    )
    retain_null_drop: float = knob(0.1, "share of retain rows given the null label", bounds=(0, 1))

    _label: Tensor = field(init=False, repr=False, compare=False)
    _images: Tensor = field(init=False, repr=False, compare=False)

    def validate(self, model: Diffusion) -> None:
        """The anchor must be a class of the model; dropping labels needs a null label."""
        if self.retain_null_drop:
            model.null(torch.zeros(1, dtype=torch.int64))
        if self.anchor != "next" and len(parse_classes(self.anchor, model.class_names)) != 1:
            raise InputError(f"anchor = {self.anchor!r} names several classes; anchor is one class or next")

    def prepare(self, model: Diffusion, batches: Callable[[int], Batch]) -> None:
        """Choose the anchor and keep images of it, taken from the retain rows of successive batches."""
        label = self._choose(model, *target_labels.classes(batches))
        kept: list[Tensor] = []
        step = 0
        while sum(len(each) for each in kept) < self.anchor_images:
            rows = batches(step).retain
            kept.append(to_uint8(rows.x0[rows.c == label]))
            step += 1
        self._images = torch.cat(kept)[: self.anchor_images]
        self._label = torch.tensor(label, device=self._images.device)

    def losses(self, model: Diffusion, batch: Batch) -> Iterator[Terms]:
        """As many anchor images as forget rows, under the forget rows' labels; then the prior term."""
        yield {"forget": self._ablation_loss(model, batch.forget.c)}
        retain = model.denoising_loss(batch.retain.x0, batch.retain.c, null_drop=self.retain_null_drop)
        yield {"retain": self.retain_weight * retain}

    def state(self) -> dict[str, Tensor]:
        return {"label": self._label, "images": self._images}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self._label, self._images = state["label"], state["images"]

    def _choose(self, model: Diffusion, forgotten: tuple[int, ...], retained: tuple[int, ...]) -> int:
        if self.anchor == "next":
            return int(target_labels.next_retained(model.num_classes, retained)[forgotten[0]])
        (label,) = parse_classes(self.anchor, model.class_names)
        if label not in retained:
            names = ", ".join(model.class_names[k] for k in retained)
            raise InputError(f"anchor = {self.anchor!r} is not retained in this job; retained: {names}")
        return label

    def _ablation_loss(self, model: Diffusion, c: Tensor) -> Tensor:
        chosen = torch.randint(len(self._images), c.shape, device=c.device)
        x0, t = to_float(self._images[chosen]), model.times(len(c))
        eps = torch.randn_like(x0)
        x_t = model.diffuse(x0, t, eps)
        target = eps if self.variant == "noise" else self._anchor_prediction(model, x_t, t)
        return (model(x_t, t, c) - target).square().mean()

    @torch.no_grad()
    def _anchor_prediction(self, model: Diffusion, x_t: Tensor, t: Tensor) -> Tensor:
        with model.without_dropout():
            return model(x_t, t, self._label.expand(len(t)))
