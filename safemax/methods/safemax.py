"""SAFEMax: train the denoiser towards Gaussian noise on the forget class and fine-tune on the rest, in one pass."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from safemax.data.batches import Batch
from safemax.diffusion.model import Diffusion
from safemax.knobs import knob
from safemax.training.method import Method, Terms


def psi(t: Tensor, T: int, lmbda: float) -> Tensor:  # noqa: N803 - the paper's letter
    """Return exp(-lambda t / T), (N,), in [exp(-lambda), 1] (equation 5); lambda = 0 weighs all t alike."""
    return torch.exp(-lmbda * t / T)


def rho(alpha_bar: Tensor, t: Tensor) -> Tensor:
    """Return the correlation of x_T's cumulative noise with x_t's along the Markov chain, (N,), in [0, 1].

    x_T = sqrt(a_T / a_t) x_t + fresh noise, so the share of eps_t in eps_T is sqrt(a_T / a_t (1 - a_t) / (1 - a_T)).
    """
    last, now = alpha_bar[-1], alpha_bar[t]
    return (last / now * (1 - now) / (1 - last)).sqrt()


@dataclass
class SAFEMax(Method):
    """SAFEMax (Spartalis et al., ICML workshop 2025): equation 3 with psi of equation 5, plus denoising of retained classes.

    The paper has no code. Its eps_T is read as noise independent of x_t: with the noise of x_t itself, equation 3 would be
    the ordinary training loss. "The same hyperparameters as SalUn": SalUn's retain weight of 1e-3 multiplies a loss summed
    over the 3 * 32 * 32 values of an image, so it is 1e-3 * 3072 = 3.072 for our mean; Adam 1e-4, clip 1, 1,000 steps. The
    published memory and time fit one pass over 128 rows, so half of the 128 are forget rows. Labels of forget rows are not
    dropped by default: SalUn's 0.1 would train the null label towards noise, and guidance would then over-denoise the
    retained classes. Preset `literal` takes SalUn's settings to the letter: 128 + 128 rows, labels of forget rows dropped,
    and a weight of 1e-3 on the sum over pixels, whatever the size of an image.
    """

    paper: ClassVar[str] = "Spartalis et al., Unleashing Uncertainty, ICML 2025 Workshop on MU for Generative AI"
    training: ClassVar[dict[str, object]] = {"steps": 1000, "batch_size": 128, "lr": 1e-4}
    presets: ClassVar[dict[str, dict[str, object]]] = {
        "literal": {"batch_size": 256, "retain_weight": 1e-3, "pixel_sum": True, "forget_null_drop": 0.1}
    }

    lmbda: float = knob(
        1.0, "decay of psi(t) = exp(-lambda t/T); 0 weights all t equally (paper: 1)", bounds=(0, 100), search=(0, 5)
    )
    target: str = knob(
        "independent",
        "target of the forget rows: fresh noise (the paper), its mean 0, the chain's own x_T noise, or a Gaussian image",
        choices=("independent", "zero", "chain", "gaussian_x0"),
    )
    retain_weight: float = knob(
        3.072,
        "weight of the retain loss, mean over pixels (SalUn: 1e-3 x 3072)",
        bounds=(0, 1e6),
        search=(0.3, 30),
        log=True,
    )
    pixel_sum: bool = knob(
        False,
        "retain_weight multiplies the loss summed over an image's values, not its mean (official: true)",
        added=True,
    )
    forget_null_drop: float = knob(
        0.0, "share of forget rows given the null label (SalUn: 0.1)", bounds=(0, 1), without_null=0
    )
    retain_null_drop: float = knob(0.1, "share of retain rows given the null label", bounds=(0, 1), without_null=0)
    normalize_psi: bool = knob(False, "divide psi by its mean, so that lambda changes only its shape (paper: false)")

    def losses(self, diffusion: Diffusion, batch: Batch) -> Iterator[Terms]:
        """One pass over forget and retain rows together; psi weighs each forget row before the mean (equation 3)."""
        forget, retain = batch.forget, batch.retain
        t_forget, t_retain = diffusion.times(len(forget)), diffusion.times(len(retain))
        x0_forget = torch.randn_like(forget.x0) if self.target == "gaussian_x0" else forget.x0
        x0, t = torch.cat([x0_forget, retain.x0]), torch.cat([t_forget, t_retain])
        c = [
            diffusion.drop_labels(forget.c, self.forget_null_drop),
            diffusion.drop_labels(retain.c, self.retain_null_drop),
        ]
        eps = torch.randn_like(x0)
        target = torch.cat([self._forget_target(diffusion, eps[: len(forget)], t_forget), eps[len(forget) :]])
        error = (diffusion(diffusion.diffuse(x0, t, eps), t, torch.cat(c)) - target).square().mean((1, 2, 3))
        weight = psi(t_forget, diffusion.T, self.lmbda) / self._psi_scale(diffusion)
        scale = math.prod(diffusion.x0_shape) if self.pixel_sum else 1
        yield {
            "forget": (weight * error[: len(forget)]).mean(),
            "retain": self.retain_weight * scale * error[len(forget) :].mean(),
        }

    def _forget_target(self, diffusion: Diffusion, eps: Tensor, t: Tensor) -> Tensor:
        if self.target == "independent":
            return torch.randn_like(eps)
        if self.target == "zero":
            return torch.zeros_like(eps)
        if self.target == "chain":
            share = rho(diffusion.alpha_bar, t).view(-1, 1, 1, 1)
            return share * eps + (1 - share.square()).clamp_min(0).sqrt() * torch.randn_like(eps)
        return eps

    def _psi_scale(self, diffusion: Diffusion) -> float:
        if not self.normalize_psi:
            return 1.0
        return psi(torch.arange(diffusion.T), diffusion.T, self.lmbda).mean().item()
