"""Guided: pull samples of the null label towards the class with a classifier, or pick the best of many seeds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from safemax.attacks.base import Attack, Setting, Trial
from safemax.diffusion.model import Diffusion
from safemax.diffusion.sampling import Guide, sample
from safemax.judges.classifier import Judge, predict
from safemax.knobs import knob

# Root mean square change of a pixel per step. From 0.06 on the classifier draws the class by itself: 40 % of digits from
# a model that never saw it.
STRENGTHS = (0.01, 0.03)


@dataclass(frozen=True)
class Guided(Attack):
    """Classifier guidance from the null label, and the best of several seeds under the label of the class.

    The helper classifier guides and picks; the judge that decides on success is independent of its gradients and choices.
    For a model without a null label the neighbour's label is used instead.
    """

    source: ClassVar[str] = "classifier guidance, arXiv:2105.05233; probe with a classifier, arXiv:2505.17013"
    axis = {"guided_pull": "strength", "guided_seeds": "seeds"}

    guided_seeds: int = knob(5, "seeds of which the best counts", bounds=(1, 10_000))

    def trials(self, diffusion: Diffusion, setting: Setting) -> Iterator[Trial]:
        labels = setting.labels()
        outside = torch.full_like(labels, diffusion.num_classes if diffusion.has_null else setting.neighbour)
        for strength in STRENGTHS:
            guide = pull(diffusion, setting.helper, labels, strength)
            images = sample(
                diffusion, outside, setting.sampler_for(diffusion, 1.0),
                seed=setting.seed, batch_size=len(outside), guide=guide,
            )  # fmt: skip
            yield Trial("guided_pull", strength, images)
        yield Trial("guided_seeds", self.guided_seeds, self._best(diffusion, setting))

    def _best(self, diffusion: Diffusion, setting: Setting) -> Tensor:
        labels = setting.labels().repeat_interleave(self.guided_seeds)
        images = sample(diffusion, labels, setting.sampler_for(diffusion), seed=setting.seed)
        score = predict(setting.helper, images)[0].gather(1, labels[:, None]).view(-1, self.guided_seeds)
        return images.unflatten(0, (-1, self.guided_seeds))[torch.arange(len(score)), score.argmax(1)]


def pull(diffusion: Diffusion, judge: Judge, labels: Tensor, strength: float) -> Guide:
    """Return a guide that moves the predicted x0 along the gradient of log p(label | x0), by `strength` a pixel.

    Algorithm 2 of arXiv:2105.05233 subtracts s sqrt(1 - alpha_bar) grad from eps. With the gradient at the predicted and
    clipped x0, that moves x0 by s (1 - alpha_bar) / alpha_bar grad, which explodes for large t. Here every step moves x0
    by a root mean square of `strength` and clips it afterwards.

    Args:
        diffusion: the model that is sampled.
        judge: the classifier whose gradient is used.
        labels: the wanted label of each image that is drawn, (N,) int64.
        strength: root mean square change of a pixel per step, in units of the range [-1, 1].
    """
    judge.eval()

    def guide(x_t: Tensor, t: Tensor, eps: Tensor, rows: slice) -> Tensor:
        alpha_bar = diffusion.alpha_bar[t].view(-1, 1, 1, 1)
        x0 = diffusion.bounded((x_t - (1 - alpha_bar).sqrt() * eps) / alpha_bar.sqrt())
        with torch.enable_grad():
            variable = x0.detach().requires_grad_(True)
            log_p = judge(diffusion.decode(variable)).log_softmax(1).gather(1, labels[rows].to(x0.device)[:, None])
            (gradient,) = torch.autograd.grad(log_p.sum(), variable)
        length = gradient.square().mean(dim=(1, 2, 3), keepdim=True).sqrt().clamp(min=1e-12)
        x0 = diffusion.bounded(x0 + strength * gradient / length)
        return (x_t - alpha_bar.sqrt() * x0) / (1 - alpha_bar).sqrt()

    return guide
