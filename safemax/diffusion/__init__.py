"""The models that can be unlearned, and sampling from them."""

from safemax.diffusion.model import Diffusion
from safemax.diffusion.networks.architectures import DDPM, SMALL
from safemax.diffusion.sampling import FAST, PAPER, Sampler, sample

__all__ = ["DDPM", "Diffusion", "FAST", "PAPER", "SMALL", "Sampler", "sample"]
