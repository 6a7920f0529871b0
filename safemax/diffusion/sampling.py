"""Sampling from a Diffusion: one seeded loop over diffusers' schedulers; guidance denoises class and null rows in one batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from torch import Tensor
from tqdm import tqdm

from safemax.data.batches import derive_seed
from safemax.diffusion.model import Diffusion
from safemax.errors import InputError
from safemax.knobs import check, knob

Guide = Callable[[Tensor, Tensor, Tensor], Tensor]
Rule: TypeAlias = DDIMScheduler | DPMSolverMultistepScheduler


@dataclass(frozen=True)
class Sampler:
    """How images are drawn. It decides what an unlearned class looks like, so it is recorded with every number.

    ddpm is ancestral sampling with the small posterior variance (DDIM at eta 1), at any number of evenly spaced steps.
    Where x0 is clipped, the noise is derived from the clipped x0: diffusers' default keeps the unclipped noise, and then the
    two no longer add up to x_t, which lowers contrast (FID 5.8 for 3.8 on digits at DDIM-20, 23 for 3.3 at DDIM-50).
    """

    name: str = knob("ddim", "sampling rule", choices=("ddim", "ddpm", "dpmpp"))
    steps: int = knob(20, "denoising steps; ddpm in full takes 1000", bounds=(1, 1000))
    guidance_scale: float = knob(1.5, "g in eps_null + g (eps_c - eps_null); 1 is unguided", bounds=(-20, 20))
    eta: float = knob(0.0, "noise added at each step of ddim, 0 none to 1 ancestral", bounds=(0, 1))
    clip: bool = knob(
        True, "clip the predicted x0 to [-1, 1] at each step, and the noise with it; latents are never clipped"
    )

    def __post_init__(self) -> None:
        check(self)

    def validate(self, diffusion: Diffusion) -> None:
        """Raise InputError unless the model has as many diffusion steps, and a null label where guidance needs one."""
        if self.steps > diffusion.T:
            raise InputError(
                f"{self} takes {self.steps} denoising steps, but the model has T = {diffusion.T} diffusion steps; "
                f"up to {diffusion.T} are allowed: protocol = custom with sampler_steps"
            )
        if self.guidance_scale != 1 and not diffusion.has_null:
            raise InputError(
                f"guidance_scale = {self.guidance_scale:g} needs a null label and this model has none; 1 is unguided"
            )

    def times(self, T: int, offset: int = 0) -> Tensor:  # noqa: N803 - the field's letter
        """Return the steps t to denoise at, (steps,) int64, falling.

        Where `is_leading`, T - T/steps down to 0, plus the offset that the model's scheduler states if it is below the stride.
        Else evenly from T - 1: down to 0, and for dpmpp, which ends with a step of its own to x0, down to a stride above 0.
        """
        if self.is_leading(T):
            stride = T // self.steps
            return torch.arange(offset if offset < stride else 0, T, stride).flip(0)
        points = min(self.steps + 1, T) if self.name == "dpmpp" else self.steps
        return torch.linspace(T - 1, 0, points, dtype=torch.float64).round().long()[: self.steps]

    def is_leading(self, T: int) -> bool:  # noqa: N803
        """Return whether the steps are those of the DDIM code, which the protocols' published numbers are of.

        They are where their number divides T and is at least LEAST_LEADING. Others would begin far below T - 1, though from
        pure noise: at T/2 with two steps, at 798 with 400 of 1000.
        """
        return self.name != "dpmpp" and self.steps >= LEAST_LEADING and T % self.steps == 0

    def __str__(self) -> str:
        """Return a name fit for a key or a caption: ddim-20-g1.5-clip."""
        eta = f"-eta{self.eta:g}" if self.name == "ddim" and self.eta else ""
        return f"{self.name}-{self.steps}{eta}-g{self.guidance_scale:g}-{'clip' if self.clip else 'noclip'}"


LEAST_LEADING = 10
# The samplers of the protocols.
FAST = Sampler("ddim", 20, 1.5, 0.0, True)
PAPER = Sampler("ddpm", 1000, 3.0, 0.0, False)
# The second opinion of `fast`: ancestral and unclipped as the paper samples, at a twentieth of its steps.
SECOND = Sampler("ddpm", 50, 1.5, 0.0, False)


def sample(
    diffusion: Diffusion,
    labels: Tensor,
    sampler: Sampler,
    *,
    seed: int,
    batch_size: int = 500,
    progress: bool = False,
    label_at: Callable[[int, Tensor], Tensor] | None = None,
    guide: Guide | None = None,
    start: tuple[Tensor, int] | None = None,
    decode: bool = True,
) -> Tensor:
    """Draw one image a label.

    Args:
        diffusion: the model, sampled in eval mode and left in the mode it was in.
        labels: (N,) int64 in [0, K]; K is the null label.
        sampler: the rule, its steps, guidance, eta and clipping.
        seed: fixes the starting noise (whatever the device and the batch size) and, with batch_size, the noise of each step.
        batch_size: images denoised together; guidance doubles the rows.
        progress: show a bar.
        label_at: labels to use at step t instead, from (t, labels).
        guide: changes eps at each step, from (x_t, t, eps).
        start: images (N, C, H, W) in [-1, 1] and the step t0 to noise them to, instead of pure noise at T.
        decode: return images; else x0, which is latents where the model is one of latents.

    Returns:
        images, (N, C, H, W) float32 in [-1, 1], on the CPU; a pixel that overflowed is at its bound, a NaN at 0.
    """
    sampler.validate(diffusion)
    noise = torch.randn(len(labels), *diffusion.x0_shape, generator=torch.Generator().manual_seed(derive_seed(seed, 0)))
    chunks = range(0, len(labels), batch_size)
    images = []
    bar = tqdm(total=len(chunks) * sampler.steps, desc=f"sampling {sampler}", disable=not progress, leave=False)
    with bar, diffusion.without_dropout():
        for first in chunks:
            part = slice(first, first + batch_size)
            begin = None if start is None else (start[0][part], start[1])
            walk = _Trajectory(
                diffusion, sampler, labels[part].to(diffusion.device), derive_seed(seed, 1, first), label_at, guide
            )
            x0 = walk.denoise(noise[part].to(diffusion.device), begin, bar)
            images.append(_images(diffusion, x0).cpu() if decode else x0.cpu())
    return torch.cat(images) if images else torch.empty(0, *(diffusion.image_shape if decode else diffusion.x0_shape))


@torch.no_grad()
def _images(diffusion: Diffusion, x0: Tensor) -> Tensor:
    return diffusion.decode(x0).nan_to_num(0.0).clamp(-1, 1)


def predict(diffusion: Diffusion, x_t: Tensor, t: Tensor, c: Tensor, guidance_scale: float) -> Tensor:
    """Return eps_null + g (eps_c - eps_null), both rows of an image in one pass of the denoiser; g = 1 takes one row."""
    if guidance_scale == 1:
        return diffusion(x_t, t, c)
    both = diffusion(torch.cat([x_t, x_t]), torch.cat([t, t]), torch.cat([c, diffusion.null(c)]))
    eps_c, eps_null = both.chunk(2)
    return torch.lerp(eps_null, eps_c, guidance_scale)


@dataclass(frozen=True)
class _Trajectory:
    """One batch on its way from noise to images."""

    diffusion: Diffusion
    sampler: Sampler
    labels: Tensor
    seed: int
    label_at: Callable[[int, Tensor], Tensor] | None
    guide: Guide | None

    @torch.no_grad()
    def denoise(self, noise: Tensor, start: tuple[Tensor, int] | None, bar: tqdm) -> Tensor:
        times = self.sampler.times(self.diffusion.T, self.diffusion.schedule.config.steps_offset).to(noise.device)
        rule = _rule(self.diffusion, self.sampler, times)
        walk = torch.stack([times, rule.timesteps])  # t, and what the rule calls that step
        x_t = noise
        if start is not None:
            x0, t0 = start
            t = torch.full((len(noise),), t0, device=noise.device)
            x_t = self.diffusion.diffuse(self.diffusion.encode(x0.to(noise.device)), t, noise)
            walk = walk[:, times <= t0]
        generator = torch.Generator(noise.device).manual_seed(self.seed)
        for t_now, step in walk.unbind(1):
            x_t = self._step(rule, x_t, t_now, step, generator)
            bar.update()
        return self.diffusion.bounded(x_t.nan_to_num(0.0))

    def _step(self, rule: Rule, x_t: Tensor, t_now: Tensor, step: Tensor, generator: torch.Generator) -> Tensor:
        c = self.labels if self.label_at is None else self.label_at(int(t_now), self.labels)
        t = t_now.expand(len(x_t))
        eps = predict(self.diffusion, x_t, t, c, self.sampler.guidance_scale)
        if self.guide is not None:
            eps = self.guide(x_t, t, eps)
        if self.sampler.name == "dpmpp":
            return rule.step(eps, step, x_t, return_dict=False)[0]
        eta = 1.0 if self.sampler.name == "ddpm" else self.sampler.eta
        return rule.step(
            eps, step, x_t, eta=eta, use_clipped_model_output=_clips(self.diffusion, self.sampler), generator=generator,
            return_dict=False,
        )[0]  # fmt: skip


def _clips(diffusion: Diffusion, sampler: Sampler) -> bool:
    """Whether the predicted x0 is clipped; latents have no range to be clipped to."""
    return sampler.clip and diffusion.codec is None


def _rule(diffusion: Diffusion, sampler: Sampler, times: Tensor) -> Rule:
    """Return the rule that walks through these steps; its `timesteps` are its own names of them."""
    betas, T, clip = diffusion.schedule.betas.tolist(), diffusion.T, _clips(diffusion, sampler)  # noqa: N806
    config = diffusion.schedule.config
    if sampler.name == "dpmpp":
        # Thresholding with a largest value of 1 is plain clipping of x0, which this class does not offer by name.
        solver = DPMSolverMultistepScheduler(
            T, trained_betas=betas, algorithm_type="dpmsolver++", solver_order=2, thresholding=clip,
            sample_max_value=1.0,
        )  # fmt: skip
        solver.set_timesteps(timesteps=times.tolist(), device=times.device)
        return solver
    leading = sampler.is_leading(T)
    rule = DDIMScheduler(
        T if leading else sampler.steps, trained_betas=betas if leading else None, clip_sample=clip,
        timestep_spacing="leading", steps_offset=int(times[-1]) if leading else 0,
    )  # fmt: skip
    if not config.get("set_alpha_to_one", True):
        rule.final_alpha_cumprod = diffusion.alpha_bar[0].cpu()
    if not leading:  # DDIMScheduler only walks in strides of T // steps, so these steps get numbers of their own
        rule.alphas_cumprod = diffusion.alpha_bar[times.flip(0)].cpu()
    rule.set_timesteps(sampler.steps, device=times.device)
    return rule
