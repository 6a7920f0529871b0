"""One update of a run's weights: gradients of a batch, clipping, the check that they are finite, Adam, the moving average."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import Parameter

from safemax.data.batches import Batch
from safemax.diffusion import layout
from safemax.diffusion.model import Diffusion
from safemax.storage.checkpoint import Checkpoint
from safemax.training import optimizers, snapshot
from safemax.training.budget import Budget
from safemax.training.finite_check import FiniteCheck, steps_between
from safemax.training.method import Losses, Method, Terms
from safemax.training.settings import Training


class Update:
    """What moves the weights that a method trains: the OptimizerStep that its `step` is given.

    Args:
        diffusion: the model, on its device and prepared by the method; its other weights are frozen.
        method: says which weights move, and constrains their gradients.
        training: the settings.
        accelerator: of the run.
        budget: says the step and its learning rate.
        saved: the checkpoint to go on from.

    Attributes:
        weights: those that move.
        values: the same, outside the graph.
        average: moving average of each; [] without one.
    """

    def __init__(
        self,
        diffusion: Diffusion,
        method: Method,
        training: Training,
        accelerator: Accelerator,
        budget: Budget,
        saved: Checkpoint | None,
    ) -> None:
        self._diffusion, self._method, self._training = diffusion, method, training
        self._accelerator, self._budget = accelerator, budget
        self.weights = self._chosen()
        self.optimizer = optimizers.create(self.weights, training)
        at_once = steps_between(accelerator.device) == 1 or not optimizers.skips_infinite(self.optimizer)
        self.finite = FiniteCheck(self.optimizer, training.lr, at_once=at_once)
        self.values = [p.detach() for p in self.weights]
        self.average: list[Tensor] = [value.clone() for value in self.values] if training.ema else []
        if saved is not None:
            self._restore(saved)

    def __call__(self, losses: Losses, batch: Batch, *, clip: float | None = None) -> Terms:
        """Take one optimizer step; see OptimizerStep."""
        terms = self._accumulate(losses, batch)
        norm = torch.nn.utils.clip_grad_norm_(self.weights, self._training.clip if clip is None else clip)
        self.finite.add(self._budget.done + 1, norm, terms)
        if self._training.channels_last:
            layout.align_gradients(self.weights)
        self._method.constrain(self._diffusion)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return terms

    def begin_step(self) -> None:
        """Set the learning rate of the budget's next step."""
        self.optimizer.param_groups[0]["lr"] = self._budget.lr

    def end_step(self) -> None:
        """Let the moving average follow the weights."""
        if self.average:
            torch._foreach_lerp_(self.average, self.values, 1 - self._training.ema_at(self._budget.done))

    def use_average(self) -> None:
        """Replace the weights by their moving average, if there is one."""
        if self.average:
            torch._foreach_copy_(self.values, self.average)
            self.average = []

    def _chosen(self) -> list[Parameter]:
        """Return the weights that move, and freeze the others."""
        self._diffusion.requires_grad_(True)
        self._diffusion.zero_grad()
        weights = list(self._method.trainable(self._diffusion))
        chosen = {id(p) for p in weights}
        for p in (*self._diffusion.parameters(), *self._diffusion.label_tables()):
            p.requires_grad_(id(p) in chosen)
        return weights

    def _restore(self, saved: Checkpoint) -> None:
        snapshot.restore_optimizer(saved, self.optimizer)
        layout.align_moments(self.optimizer)
        like = [] if self._budget.is_spent else self.average
        average = snapshot.average_of(saved, like, self._accelerator.device)
        self.average = [layout.like(*each) for each in zip(average, self.values, strict=True)] if average else []

    def _accumulate(self, losses: Losses, batch: Batch) -> Terms:
        """Add the gradients of a batch, part by part, and return its mean terms."""
        count = self._training.accumulate
        parts = batch.split(count) if count > 1 else [batch]
        terms: Terms = {}
        for number, part in enumerate(parts, start=1):
            is_last = number == len(parts)
            with contextlib.nullcontext() if is_last else self._accelerator.no_sync(self._diffusion.denoiser):
                groups = losses(self._diffusion, part)
                for name, value in self._method.backward(groups, self._diffusion, self._backward(len(parts))).items():
                    terms[name] = terms.get(name, 0) + value / len(parts)
        return terms

    def _backward(self, parts: int) -> Callable[[Tensor], None]:
        return lambda loss: self._accelerator.backward(loss / parts)
