"""The models that can be unlearned, and sampling from them."""

from safemax.diffusion.model import Diffusion
from safemax.diffusion.sampling import FAST, PAPER, Sampler, sample

__all__ = ["Diffusion", "FAST", "PAPER", "Sampler", "sample"]
