"""DiMUM: the forgotten label memorises other images in place of its own, while the rest is denoised as before."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from safemax.data.batches import Batch, Batches, Rows, to_float
from safemax.diffusion.model import Diffusion
from safemax.knobs import knob
from safemax.training.method import Method, Terms


@dataclass
class DiMUM(Method):
    """Unlearning by memorisation (Yuan et al., 2025): both losses are denoising losses, so that training converges.

    The forgotten label learns a fixed set of alternative images, the other labels their own. Methods that climb or swap
    labels leave a point from which relearning has a slope; a memorised set is a minimum.

    There is no official code, and only the abstract and summaries could be read: which images the paper takes, how many,
    and the weights of the losses are ours. Here they are images of uniform noise, drawn once (Selective Amnesia draws new
    ones in every step, which nobody can memorise). With images of another class the method would be Ablating concepts in
    its variant `noise`.
    """

    paper: ClassVar[str] = "Yuan et al., arXiv:2512.03564"
    training: ClassVar[dict[str, object]] = {"steps": 1000, "batch_size": 256, "lr": 1e-4}

    alternative_images: int = knob(64, "images that a forgotten label memorises", bounds=(1, 1_000_000))
    retain_weight: float = knob(
        1.0, "weight of the retain loss, mean over pixels", bounds=(0, 1e6), search=(0.1, 30), log=True
    )
    retain_null_drop: float = knob(0.1, "share of retain rows given the null label", bounds=(0, 1), without_null=0)

    _images: Tensor = field(init=False, repr=False, compare=False)
    _forgotten: Tensor = field(init=False, repr=False, compare=False)

    def prepare(self, diffusion: Diffusion, batches: Batches) -> None:
        """Draw the images of each forgotten label, (forgotten, images, C, H, W) uint8."""
        self._forgotten = torch.tensor(sorted(batches.forget_classes), device=diffusion.device)
        shape = (len(self._forgotten), self.alternative_images, *diffusion.x0_shape)
        self._images = torch.randint(256, shape, dtype=torch.uint8).to(diffusion.device)

    def losses(self, diffusion: Diffusion, batch: Batch) -> Iterator[Terms]:
        """Denoise the retain rows, then alternative images under the labels of the forget rows."""
        retain = diffusion.denoising_loss(batch.retain.x0, batch.retain.c, null_drop=self.retain_null_drop)
        yield {"retain": self.retain_weight * retain}
        rows = self.alternative(batch.forget.c)
        yield {"forget": diffusion.denoising_loss(rows.x0, rows.c)}

    def alternative(self, c: Tensor) -> Rows:
        """Return one of its alternative images for each forgotten label c, (N,)."""
        pick = torch.randint(self.alternative_images, c.shape, device=c.device)
        return Rows(to_float(self._images[torch.searchsorted(self._forgotten, c), pick]), c)

    def state(self) -> dict[str, Tensor]:
        return {"images": self._images, "forgotten": self._forgotten}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self._images, self._forgotten = state["images"], state["forgotten"]
