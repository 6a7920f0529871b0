"""Selective Amnesia: train the forget class on noise images; replay and the Fisher information protect the rest."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from safemax.data.batches import Batch, Batches, Rows, to_x0
from safemax.diffusion import team
from safemax.diffusion.model import Diffusion
from safemax.diffusion.sampling import Sampler, sample
from safemax.knobs import knob, knobs
from safemax.method_tools.fisher import diagonal
from safemax.training.method import Method, OptimizerStep, Terms


@dataclass
class SelectiveAmnesia(Method):
    """Selective Amnesia (Heng and Soh, NeurIPS 2023): surrogate and replay loss, and elastic weight consolidation.

    The forget label is trained on images of uniform noise, the retained labels on images that the model itself drew.
    lambda sum F (theta - theta_star)^2 (no 1/2) holds the weights, with F_i = E_x[(sum over t of d l(x, t) / d theta_i)^2].

    Units: the official losses sum over the CHW values of an image, S = CHW M for our means M. Its objective divided by CHW
    is M_forget + gamma M_retain + lambda sum (F_S / CHW) (theta - theta_star)^2. F_S / CHW is therefore what is stored:
    gamma = 1 and lambda = 10 keep their official values at every resolution, and the minimum is the same. With the sum
    the clip of 1 is active in nearly every step, with the mean almost never; `pixel_sum` (preset `paper`) uses the sum.

    For F the official code feeds images in [0, 1] to a network trained on [-1, 1] and drops a tenth of the labels.
    `paper` does so too, over all replay images and all t, with images drawn ancestrally in 1,000 unclipped steps at g = 3.
    Two differences remain in `paper`: the official images pass through PNG files, each stretched to the range 0..255,
    while ours are clamped; and its 128 + 128 rows are mirrored at random, never here. The official code samples from a
    moving average of 0.9999, which keeps 13.5 % of the old weights (train ema = 0.9999; none by default).

    By default F is an unbiased Monte Carlo estimate over images and t; `fisher_error` after `prepare` is its relative
    standard error. An image's spread hardly grows with fewer t (8x8 digits: 1.2 for all 1,000, 1.5 for 32), so 32 t of
    1,000 images have an error of 5 %, where all t of 5,000 images have 2 % at 156 times the cost.
    """

    paper: ClassVar[str] = "Heng and Soh, arXiv:2305.10120"
    training: ClassVar[dict[str, object]] = {"steps": 20_000, "batch_size": 256, "lr": 1e-4}
    presets: ClassVar[dict[str, dict[str, object]]] = {
        "paper": {
            "pixel_sum": True,
            "replay_sampler": "ddpm",
            "replay_steps": 1000,
            "replay_guidance_scale": 3.0,
            "replay_clip": False,
            "fisher_images": 0,
            "fisher_times": 0,
            "fisher_null_drop": 0.1,
            "fisher_unit_range": True,
        },
    }
    shared: ClassVar[bool] = True

    lmbda: float = knob(
        10.0, "weight of elastic weight consolidation (official: 10)", bounds=(0, 1e12), search=(0.1, 1000), log=True
    )
    gamma: float = knob(1.0, "weight of the replay loss (official: 1)", bounds=(0, 1e6), search=(0.3, 30), log=True)
    pixel_sum: bool = knob(False, "minimise losses summed over pixels, so that the clip is active (official: true)")
    replay_images: int = knob(500, "images drawn from the model for each class (official: 500)", bounds=(1, 1_000_000))
    replay_sampler: str = knob(
        "ddim", "sampling rule of the replay images (official: ddpm)", choices=("ddim", "ddpm", "dpmpp")
    )
    replay_steps: int = knob(20, "denoising steps of the replay images (official: 1000)", bounds=(1, 1000))
    replay_guidance_scale: float = knob(
        1.5, "guidance of the replay images; 1 is unguided (official: 3)", bounds=(-20, 20), without_null=1
    )
    replay_clip: bool = knob(True, "clip the predicted x0 of the replay images (official: false)")
    fisher_images: int = knob(
        1000, "images in the Fisher information, over all classes; 0 means all (official: 0)", bounds=(0, 1_000_000)
    )
    fisher_times: int = knob(
        32, "steps t of an image in the Fisher information; 0 means all T (official: 0)", bounds=(0, 1000)
    )
    fisher_batch: int = knob(125, "steps t of the Fisher information in one pass", bounds=(1, 1000))
    fisher_null_drop: float = knob(
        0.0, "share of labels dropped in the Fisher information (official: 0.1)", bounds=(0, 1), without_null=0
    )
    fisher_unit_range: bool = knob(
        False, "compute the Fisher information on images in [0, 1] instead of [-1, 1] (official: true)"
    )

    @property
    def _sampler(self) -> Sampler:
        return Sampler(
            self.replay_sampler, self.replay_steps, self.replay_guidance_scale, eta=0.0, clip=self.replay_clip
        )

    def validate(self, diffusion: Diffusion) -> None:
        """Raise InputError also where the replay images cannot be drawn from the model."""
        super().validate(diffusion)
        self._sampler.validate(diffusion)

    def prepare(self, diffusion: Diffusion, batches: Batches) -> None:
        """Draw the replay images, estimate the Fisher information on them, and copy the weights."""
        labels = torch.arange(diffusion.num_classes).repeat_interleave(self.replay_images)
        with team.together():
            x0 = sample(diffusion, labels, self._sampler, seed=int(torch.randint(2**31, ())), decode=False)
        images = diffusion.stored(x0).to(diffusion.device)
        self._replay = images.view(diffusion.num_classes, self.replay_images, *diffusion.x0_shape)
        self._theta_star = [p.detach().clone() for p in diffusion.parameters()]
        diffusion.eval()
        chosen = torch.randperm(len(labels))[: self.fisher_images or None].to(diffusion.device)
        x0 = to_x0(images[chosen])
        rows = Rows((x0 + 1) / 2 if self.fisher_unit_range else x0, labels.to(diffusion.device)[chosen])
        fisher, self.fisher_error = diagonal(
            diffusion, rows, times=self.fisher_times, batch=self.fisher_batch, null_drop=self.fisher_null_drop
        )
        self._fisher = [each / math.prod(diffusion.x0_shape) for each in fisher]

    def losses(self, diffusion: Diffusion, batch: Batch) -> Iterator[Terms]:
        """Train on noise images under the forget label, then on replay images of the retain rows' classes, at the same t."""
        forget, retain = batch.forget, batch.retain
        t = diffusion.times(max(len(forget), len(retain)))
        noise = Rows(torch.rand_like(forget.x0) * 2 - 1, forget.c)
        pick = torch.randint(self.replay_images, retain.c.shape, device=retain.c.device)
        replay = Rows(to_x0(self._replay[retain.c, pick]), retain.c)
        yield {"forget": self._scale(diffusion) * _loss(diffusion, noise, t)}
        yield {"retain": self._scale(diffusion) * self.gamma * _loss(diffusion, replay, t)}

    def step(self, diffusion: Diffusion, batch: Batch, optimizer_step: OptimizerStep) -> Terms:
        """Write the elastic gradient, 2 lambda F (theta - theta_star), to .grad before backward adds to it.

        It needs no graph that way and is clipped with the rest. It is added once a step, whatever `accumulate` is.
        """
        elastic = self._consolidate(diffusion)
        return {**optimizer_step(self.losses, batch), "elastic": elastic}

    def prior(self) -> dict[str, object]:
        """Return the knobs of replay and Fisher information, which do not depend on the forget class."""
        return {name: getattr(self, name) for name in knobs(self) if name.startswith(("replay_", "fisher_"))}

    def state(self) -> dict[str, Tensor]:
        fisher = {f"fisher.{i:05d}": value for i, value in enumerate(self._fisher)}
        theta_star = {f"theta_star.{i:05d}": value for i, value in enumerate(self._theta_star)}
        return {**fisher, **theta_star, "replay": self._replay, "error": torch.tensor(self.fisher_error)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        names = sorted(state)
        self._fisher = [state[name] for name in names if name.startswith("fisher.")]
        self._theta_star = [state[name] for name in names if name.startswith("theta_star.")]
        self._replay, self.fisher_error = state["replay"], state["error"].item()

    def facts(self) -> dict[str, float]:
        """Return the relative standard error of the Fisher information."""
        return {"fisher_error": self.fisher_error}

    def _scale(self, diffusion: Diffusion) -> int:
        return math.prod(diffusion.x0_shape) if self.pixel_sum else 1

    @torch.no_grad()
    def _consolidate(self, diffusion: Diffusion) -> Tensor:
        weights = list(diffusion.parameters())
        moved = torch._foreach_sub([p.detach() for p in weights], self._theta_star)
        pull = torch._foreach_mul(moved, self._fisher)
        torch._foreach_mul_(pull, 2 * self.lmbda * self._scale(diffusion))
        for p, gradient in zip(weights, pull, strict=True):
            p.grad = gradient
        # lambda F d^2 is half of d times its own gradient; the sum of non-negative values is their L1 norm.
        return torch.stack(torch._foreach_norm(torch._foreach_mul(moved, pull), 1)).sum() / 2


def _loss(diffusion: Diffusion, rows: Rows, t: Tensor) -> Tensor:
    eps, t = torch.randn_like(rows.x0), t[: len(rows)]
    return (diffusion(diffusion.diffuse(rows.x0, t, eps), t, rows.c) - eps).square().mean()
