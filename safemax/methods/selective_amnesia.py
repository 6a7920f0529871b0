"""Selective Amnesia: train the forget class on noise images while replay and the Fisher information hold the rest."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from safemax.data.batches import Batch, Rows, to_float, to_uint8
from safemax.diffusion.model import Diffusion
from safemax.diffusion.sampling import Sampler, sample
from safemax.knobs import knob, knobs
from safemax.training.fisher import diagonal
from safemax.training.method import Method, OptimizerStep, Terms


@dataclass
class SelectiveAmnesia(Method):
    """Selective Amnesia (Heng and Soh, NeurIPS 2023): surrogate and replay loss, and elastic weight consolidation.

    The forget label is trained on images of uniform noise and the retained ones on images that the model itself drew;
    lambda sum F (theta - theta_star)^2 (no 1/2) holds the weights, F_i = E_x[(sum over t of d l(x, t) / d theta_i)^2].

    Units: the official losses sum over the CHW values of an image, S = CHW M in our means M. Its objective over CHW is
    M_forget + gamma M_retain + lambda sum (F_S / CHW) (theta - theta_star)^2, so F_S / CHW is what is kept: gamma = 1
    and lambda = 10 keep their official values at every resolution, and the minimum is the same. Under the sum the clip
    of 1 binds at nearly every step, under the mean almost never; `pixel_sum` (preset `paper`) descends the sum itself.

    For F the official code feeds images in [0, 1] to a network trained on [-1, 1] and drops a tenth of the labels;
    `paper` does so, over all replay images and t, drawn ancestrally in 1,000 unclipped steps at g = 3. Its images pass
    through PNG files whose range is stretched to 0..255 one by one; ours are clamped, in `paper` too. It trains on
    128 + 128 rows, mirrored at random (never here), and samples from an average of 0.9999, which keeps 13.5 % of the
    old weights (train ema = 0.9999; none by default).

    By default F is a Monte Carlo estimate over images and t, without bias; `fisher_error` after `prepare` is its relative
    standard error. An image's spread hardly grows with fewer t (8x8 digits: 1.2 for all 1,000, 1.5 for 32), so 32 t of
    1,000 images err by 5 % where all t of 5,000 err by 2 % at 156 times the rows.
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
    pixel_sum: bool = knob(False, "descend losses summed over pixels, so that the clip binds (official: true)")
    replay_images: int = knob(500, "images drawn from the model, a class (official: 500)", bounds=(1, 1_000_000))
    replay_sampler: str = knob(
        "ddim", "sampling rule of the replay images (official: ddpm)", choices=("ddim", "ddpm", "dpmpp")
    )
    replay_steps: int = knob(20, "denoising steps of the replay images (official: 1000)", bounds=(1, 1000))
    replay_guidance_scale: float = knob(
        1.5, "guidance of the replay images; 1 is unguided (official: 3)", bounds=(-20, 20)
    )
    replay_clip: bool = knob(True, "clip the predicted x0 of the replay images (official: false)")
    fisher_images: int = knob(
        1000, "images in the Fisher information, over all classes; 0 takes all (official: 0)", bounds=(0, 1_000_000)
    )
    fisher_times: int = knob(
        32, "steps t of an image in the Fisher information; 0 takes all T (official: 0)", bounds=(0, 1000)
    )
    fisher_batch: int = knob(125, "steps t in one pass", bounds=(1, 1000))
    fisher_null_drop: float = knob(
        0.0, "share of labels dropped in the Fisher information (official: 0.1)", bounds=(0, 1)
    )
    fisher_unit_range: bool = knob(False, "feed it images in [0, 1] instead of [-1, 1] (official: true)")

    def validate(self, model: Diffusion) -> None:
        """Guided replay and dropped labels need a null label."""
        if self.replay_guidance_scale != 1 or self.fisher_null_drop:
            model.null(torch.zeros(1, dtype=torch.int64))

    def prepare(self, model: Diffusion, batches: Callable[[int], Batch]) -> None:
        """Draw the replay images, estimate the Fisher information on them, and remember the weights."""
        labels = torch.arange(model.num_classes).repeat_interleave(self.replay_images)
        sampler = Sampler(
            self.replay_sampler, self.replay_steps, self.replay_guidance_scale, eta=0.0, clip=self.replay_clip
        )
        images = to_uint8(sample(model, labels, sampler, seed=int(torch.randint(2**31, ())))).to(model.device)
        self._replay = images.view(model.num_classes, self.replay_images, *model.image_shape)
        self._theta_star = [p.detach().clone() for p in model.parameters()]
        model.eval()
        chosen = torch.randperm(len(labels))[: self.fisher_images or None].to(model.device)
        x0 = to_float(images[chosen])
        rows = Rows((x0 + 1) / 2 if self.fisher_unit_range else x0, labels.to(model.device)[chosen])
        fisher, self.fisher_error = diagonal(
            model, rows, times=self.fisher_times, batch=self.fisher_batch, null_drop=self.fisher_null_drop
        )
        self._fisher = [each / math.prod(model.image_shape) for each in fisher]

    def losses(self, model: Diffusion, batch: Batch) -> Iterator[Terms]:
        """Denoise noise images under the forget label, then replay images of the retain rows' classes, at shared t."""
        forget, retain = batch.forget, batch.retain
        t = model.times(max(len(forget), len(retain)))
        noise = Rows(torch.rand_like(forget.x0) * 2 - 1, forget.c)
        pick = torch.randint(self.replay_images, retain.c.shape, device=retain.c.device)
        replay = Rows(to_float(self._replay[retain.c, pick]), retain.c)
        yield {"forget": self._scale(model) * _loss(model, noise, t)}
        yield {"retain": self._scale(model) * self.gamma * _loss(model, replay, t)}

    def step(self, model: Diffusion, batch: Batch, optimizer_step: OptimizerStep) -> Terms:
        """Put the elastic gradient, 2 lambda F (theta - theta_star), where backward adds to it: no graph, yet clipped.

        It is put there once a step, however many passes the rows are split into.
        """
        elastic = self._consolidate(model)
        return {**optimizer_step(self.losses, batch), "elastic": elastic}

    def prior(self) -> dict[str, object]:
        """Replay and Fisher information follow their own knobs, whatever is forgotten."""
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
        """The relative standard error of the Fisher information."""
        return {"fisher_error": self.fisher_error}

    def _scale(self, model: Diffusion) -> int:
        return math.prod(model.image_shape) if self.pixel_sum else 1

    @torch.no_grad()
    def _consolidate(self, model: Diffusion) -> Tensor:
        weights = list(model.parameters())
        moved = torch._foreach_sub([p.detach() for p in weights], self._theta_star)
        pull = torch._foreach_mul(moved, self._fisher)
        torch._foreach_mul_(pull, 2 * self.lmbda * self._scale(model))
        for p, gradient in zip(weights, pull, strict=True):
            p.grad = gradient
        # lambda F d^2 is half of d times its own gradient, and a sum of what is never negative is its L1 norm.
        return torch.stack(torch._foreach_norm(torch._foreach_mul(moved, pull), 1)).sum() / 2


def _loss(model: Diffusion, rows: Rows, t: Tensor) -> Tensor:
    eps, t = torch.randn_like(rows.x0), t[: len(rows)]
    return (model(model.diffuse(rows.x0, t, eps), t, rows.c) - eps).square().mean()
