"""Samplers: the rules by which images are drawn, and those of the protocols."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from safemax.diffusion.model import Diffusion
from safemax.errors import InputError
from safemax.knobs import check, knob


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
    keep_eps: bool = knob(False, "clip x0 alone and keep the predicted noise, as diffusers does by default")

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

    def within(self, diffusion: Diffusion) -> Sampler:
        """Return this sampler as far as the model allows it: with no more steps than T, unguided without a null label."""
        guidance = self.guidance_scale if diffusion.has_null else 1.0
        return replace(self, steps=min(self.steps, diffusion.T), guidance_scale=guidance)

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

    @property
    def passes(self) -> int:
        """Passes of the network that an image takes: guidance doubles them."""
        return self.steps * (1 if self.guidance_scale == 1 else 2)

    def __str__(self) -> str:
        """Return a name fit for a key: ddim-20-g1.5-clip, clipx0 where the noise is kept."""
        eta = f"-eta{self.eta:g}" if self.name == "ddim" and self.eta else ""
        clip = ("clipx0" if self.keep_eps else "clip") if self.clip else "noclip"
        return f"{self.name}-{self.steps}{eta}-g{self.guidance_scale:g}-{clip}"

    @property
    def words(self) -> str:
        """The same for a caption: DDIM, 20 steps, guidance 1.5."""
        guidance = "unguided" if self.guidance_scale == 1 else f"guidance {self.guidance_scale:g}"
        eta = f", eta {self.eta:g}" if self.name == "ddim" and self.eta else ""
        clip = (", x0 clipped" if self.keep_eps else "") if self.clip else ", unclipped"
        return f"{'DPM-Solver++' if self.name == 'dpmpp' else self.name.upper()}, {self.steps} steps{eta}, {guidance}{clip}"


LEAST_LEADING = 10
# The samplers of the protocols.
FAST = Sampler("ddim", 20, 1.5, 0.0, True)
PAPER = Sampler("ddpm", 1000, 3.0, 0.0, False)
# What people use: diffusers' DDIM as it comes, and the protocol's own at other guidance. Names: metric_keys.USER_SAMPLERS.
USERS = {
    "clipped": Sampler("ddim", 50, 1.5, 0.0, True, keep_eps=True),
    "unguided": Sampler("ddim", 20, 1.0, 0.0, True),
    "strong": Sampler("ddim", 20, 3.0, 0.0, True),
}
# The second opinion of `fast`: ancestral and unclipped as the paper samples, at a twentieth of its steps.
SECOND = Sampler("ddpm", 50, 1.5, 0.0, False)
