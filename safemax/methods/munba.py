"""MUNBa: the forget and retain losses bargain over the direction of every step, by the closed form of the Nash solution."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from safemax.data.batches import Batch, Batches
from safemax.diffusion.model import Diffusion
from safemax.knobs import knob
from safemax.method_tools import gradients
from safemax.method_tools.sparsity import fading_l1
from safemax.method_tools.target_labels import next_retained
from safemax.methods.random_label import imitation_loss
from safemax.training.method import Method, Terms

# Weights of the retain and forget gradients where the bargain has no solution (official code for Stable Diffusion).
FALLBACK = (1.0, 0.5)


def nash(retain_square: Tensor, cross: Tensor, forget_square: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weights (a_r, a_f) of the Nash bargaining solution of two players.

    They solve a_r (g_r.g_r a_r + g_r.g_f a_f) = 1 and a_f (g_f.g_f a_f + g_r.g_f a_r) = 1. With n = ||g|| and cos the
    cosine between the two, a = 1 / (n sqrt(1 + cos)): inserted in the first equation it gives (1 + cos) / (1 + cos) = 1,
    likewise in the second. The step a_r g_r + a_f g_f has norm sqrt(2) whatever the scales of the losses. For opposite
    or vanishing gradients there is no solution, and FALLBACK is returned.

    Args:
        retain_square: g_r.g_r, a scalar.
        cross: g_r.g_f.
        forget_square: g_f.g_f.
    """
    norms = (retain_square * forget_square).sqrt()
    agreement = 1 + cross / torch.where(norms > 0, norms, 1.0)
    agree = (norms > 0) & (agreement > 1e-6)
    retain, forget = ((square * agreement).rsqrt() for square in (retain_square, forget_square))
    return torch.where(agree, retain, FALLBACK[0]), torch.where(agree, forget, FALLBACK[1])


@dataclass
class MUNBa(Method):
    """Machine unlearning via Nash bargaining (Wu and Harandi, ICCV 2025) between the gradients of the two losses.

    The official code covers Stable Diffusion and classifiers, not DDPM. The losses are those for Stable Diffusion:
    denoising of retain rows, and on forget rows the prediction for the next class; both are means over pixels there too,
    and the solution does not depend on their scales. The official expression for a_f loses precision for nearly
    orthogonal gradients and adds 1e-8 to products of six gradient norms; the closed form used here does neither. It
    needs two backward passes a step instead of three, and stores two gradients. The official lr of 1e-5 fine-tunes
    Stable Diffusion; the default here is the lr of the DDPM family (SA, SalUn). The official command for a class adds an L1
    norm of the trained weights, of weight 1e-4 and falling (preset `paper`; there on cross-attention only).
    """

    paper: ClassVar[str] = "Wu and Harandi, arXiv:2411.15537"
    per_part: ClassVar[bool] = False
    training: ClassVar[dict[str, object]] = {"steps": 1000, "batch_size": 256, "lr": 1e-4}
    presets: ClassVar[dict[str, dict[str, object]]] = {"paper": {"l1": 1e-4, "lr": 1e-5}}

    l1: float = knob(
        0.0,
        "first weight of an L1 norm of the weights, falling to 0 (official for a class: 1e-4)",
        bounds=(0, 1e3),
        added=True,
    )
    forget_null_drop: float = knob(
        0.0, "share of forget rows and targets given the null label", bounds=(0, 1), without_null=0
    )
    retain_null_drop: float = knob(0.1, "share of retain rows given the null label", bounds=(0, 1), without_null=0)

    _anchor: Tensor = field(init=False, repr=False, compare=False)

    def prepare(self, diffusion: Diffusion, batches: Batches) -> None:
        """Map each label to the next retained one."""
        anchor = next_retained(diffusion.num_classes, batches.retain_classes)
        self._anchor = anchor.to(diffusion.device)

    def losses(self, diffusion: Diffusion, batch: Batch) -> Iterator[Terms]:
        """Denoise the retain rows; on forget rows, predict what the model predicts for their anchor."""
        yield {"retain": diffusion.denoising_loss(batch.retain.x0, batch.retain.c, null_drop=self.retain_null_drop)}
        anchor = self._anchor[batch.forget.c]
        yield {"forget": imitation_loss(diffusion, batch.forget, anchor, null_drop=self.forget_null_drop)}

    def backward(self, groups: Iterable[Terms], diffusion: Diffusion, accumulate: Callable[[Tensor], None]) -> Terms:
        """Weigh the two gradients by the Nash solution."""
        weights = gradients.trained(diffusion)
        terms, (retain, forget) = gradients.separate(groups, weights, accumulate)
        share = nash(*(gradients.dot(a, b) for a, b in ((retain, retain), (retain, forget), (forget, forget))))
        gradients.add(weights, gradients.combine(retain, forget, *share))
        if self.l1:
            terms["l1"] = fading_l1(weights, self.l1, self.steps_done, self.run_steps)
            gradients.add(weights, list(torch.autograd.grad(terms["l1"], weights)))
        return {name: value.detach() for name, value in terms.items()}

    def state(self) -> dict[str, Tensor]:
        return {"anchor": self._anchor}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self._anchor = state["anchor"]
