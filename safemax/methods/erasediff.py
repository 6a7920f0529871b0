"""EraseDiff: lower the retain loss while forgetting stays complete, a first-order constraint from an inner loop that is undone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from safemax.data.batches import Batch, Rows
from safemax.diffusion.model import Diffusion
from safemax.knobs import knob
from safemax.method_tools import gradients
from safemax.methods.random_label import imitation_loss
from safemax.training.method import Method, OptimizerStep, Terms


def bome_weight(eta: float, conflict: Tensor, square: Tensor) -> Tensor:
    """Return lambda = max(0, eta - g_r.g_q / g_q.g_q), the least weight for which q falls at the rate eta ||g_q||^2.

    Along g_r + lambda g_q the constraint q changes by -(g_r.g_q + lambda g_q.g_q); that is at most -eta g_q.g_q if
    lambda is at least eta - g_r.g_q / g_q.g_q (BOME, Liu et al., 2022, whose barrier phi is eta ||g_q||^2 here).

    Args:
        eta: rate, at least 0; also the weight if the two gradients are orthogonal.
        conflict: g_r.g_q.
        square: g_q.g_q; if it is 0, the weight is eta.
    """
    return (eta - conflict / torch.where(square > 0, square, 1.0)).clamp_min(0)


@dataclass
class EraseDiff(Method):
    """EraseDiff (Wu et al., CVPR 2025): min L_retain subject to q = L_forget(theta) - L_forget(theta_K) <= 0.

    L_forget regresses eps(x_t, c) on the prediction for one random retained label a batch. theta_K is theta after
    `inner_steps` steps on L_forget; the weights are then restored to theta. The outer step is g_retain + lambda g_q, where
    lambda follows BOME's rule (`bome`, eta = lambda) or is constant. With theta_K fixed, g_q is the gradient of L_forget,
    so the inner loop measures whether anything is left to erase: if not (q <= 0), eta is 0 and lambda only removes a
    conflict between the gradients.

    The official code alternates 80 inner and 36 outer steps, 8 times; here 2 inner steps precede each outer step, the
    same ratio, on the step's own rows. Its losses are means over pixels too. Faults of it corrected by default: its inner
    loop shares Adam with the outer steps and leaves its moments behind when the weights are restored (preset `paper`
    does so, with a constant lambda); forget rows share t with retain rows; the random label can be a forgotten one. Its
    label drop is 0.1 on forget rows and targets and 0 on retain rows, the wrong way round for the null label, and dropout
    is on in the target; only `paper` does so. Its moving average is train ema = 0.99.
    """

    paper: ClassVar[str] = "Wu et al., arXiv:2401.05779; BOME: Liu et al., arXiv:2209.08709"
    per_part: ClassVar[bool] = False
    training: ClassVar[dict[str, object]] = {"steps": 288, "batch_size": 256, "lr": 1e-4}
    presets: ClassVar[dict[str, dict[str, object]]] = {
        "paper": {
            "weighting": "constant",
            "one_adam": True,
            "target_dropout": True,
            "forget_null_drop": 0.1,
            "retain_null_drop": 0.0,
        }
    }

    lmbda: float = knob(
        0.1,
        "weight of the constraint: BOME's eta, or the constant itself (official: 0.1)",
        bounds=(0, 1e6),
        search=(0.01, 10),
        log=True,
    )
    weighting: str = knob("bome", "rule for the constraint's weight (official: constant)", choices=("bome", "constant"))
    inner_steps: int = knob(2, "forget steps before each outer step (official: 80 before 36)", bounds=(1, 1000))
    inner_lr: float = knob(
        1e-4, "learning rate of the inner steps' own Adam (official: the outer one's)", bounds=(0, 10)
    )
    one_adam: bool = knob(
        False, "take inner steps with the outer steps' Adam, whose moments then remember them (official: true)"
    )
    target_dropout: bool = knob(False, "keep dropout active in the forget target (official: true)", added=True)
    forget_null_drop: float = knob(
        0.0, "share of forget rows and targets given the null label (official: 0.1)", bounds=(0, 1), without_null=0
    )
    retain_null_drop: float = knob(
        0.1, "share of retain rows given the null label (official: 0)", bounds=(0, 1), without_null=0
    )

    _adam: torch.optim.Adam | None = field(init=False, repr=False, compare=False, default=None)
    _seed: int = field(init=False, repr=False, compare=False, default=0)
    _reached: Tensor | None = field(init=False, repr=False, compare=False, default=None)

    def step(self, diffusion: Diffusion, batch: Batch, optimizer_step: OptimizerStep) -> Terms:
        """Run the inner loop, restore the weights, then take the outer step."""
        self._seed = int(torch.randint(2**62, ()))
        self._reached = self._inner_loop(diffusion, batch, optimizer_step)
        return optimizer_step(self.losses, batch)

    def losses(self, diffusion: Diffusion, batch: Batch) -> Iterator[Terms]:
        """Yield the losses of the outer step, one a group."""
        yield {"retain": diffusion.denoising_loss(batch.retain.x0, batch.retain.c, null_drop=self.retain_null_drop)}
        yield from self._forget_loss(diffusion, batch)

    def backward(self, groups: Iterable[Terms], diffusion: Diffusion, accumulate: Callable[[Tensor], None]) -> Terms:
        """Weigh the two gradients of the outer step; an inner step has one."""
        if self._reached is None:
            return super().backward(groups, diffusion, accumulate)
        weights = gradients.trained(diffusion)
        terms, (retain, forget) = gradients.separate(groups, weights, accumulate)
        gap = gradients.average([terms["forget"] - self._reached])[0]
        gradients.add(weights, gradients.combine(retain, forget, 1.0, self._weight(retain, forget, gap)))
        return terms

    def constrain(self, diffusion: Diffusion) -> None:
        """Take an inner step with its own Adam and clear the gradients, so that the trainer's Adam does nothing."""
        if self._adam is not None:
            self._adam.step()
            diffusion.zero_grad()

    def _weight(self, retain: gradients.Gradient, forget: gradients.Gradient, gap: Tensor) -> Tensor | float:
        if self.weighting == "constant":
            return self.lmbda
        eta = self.lmbda if gap > 0 else 0.0
        return bome_weight(eta, gradients.dot(retain, forget), gradients.dot(forget, forget))

    def _inner_loop(self, diffusion: Diffusion, batch: Batch, optimizer_step: OptimizerStep) -> Tensor:
        """Return L_forget(theta_K), a scalar, and restore the weights."""
        weights = gradients.trained(diffusion)
        before = [w.detach().clone() for w in weights]
        self._reached = None
        self._adam = None if self.one_adam else torch.optim.Adam(weights, lr=self.inner_lr, fused=True)
        for _ in range(self.inner_steps):
            optimizer_step(self._forget_loss, batch, clip=math.inf)
        self._adam = None
        with torch.no_grad():
            (terms,) = self._forget_loss(diffusion, batch)
            torch._foreach_copy_(list[Tensor](weights), before)
        return terms["forget"]

    def _forget_loss(self, diffusion: Diffusion, batch: Batch) -> Iterator[Terms]:
        """Use the same t, noise and label in every evaluation of a step, so that only the weights make a gap."""
        devices = [diffusion.device] if diffusion.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(self._seed)
            loss = self._imitation(diffusion, batch.forget, batch.retain.c)
        yield {"forget": loss}

    def _imitation(self, diffusion: Diffusion, rows: Rows, retained: Tensor) -> Tensor:
        anchor = retained[torch.randint(len(retained), (1,), device=retained.device)].expand(len(rows))
        return imitation_loss(
            diffusion, rows, anchor, null_drop=self.forget_null_drop, target_dropout=self.target_dropout
        )
