"""The interface of an unlearning method: what to minimise and which weights may move; the trainer owns everything else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn import Parameter

from safemax.data.batches import Batch
from safemax.diffusion.model import Diffusion
from safemax.errors import InputError
from safemax.knobs import check

Terms = dict[str, Tensor]
Losses = Callable[[Diffusion, Batch], Iterable[Terms]]


class OptimizerStep(Protocol):
    """One optimizer step on the losses of a batch: backward, clipping, finite check, `constrain`, step."""

    def __call__(self, losses: Losses, batch: Batch, *, clip: float | None = None) -> Terms:
        """Return the terms, detached; `clip` replaces the trainer's largest gradient norm."""
        ...


@dataclass
class Method(ABC):
    """An unlearning method; its knobs are the fields of its dataclass (safemax.knobs.knob), checked at construction.

    Class attributes:
        paper: the source, as an arXiv number or a citation.
        training: official training settings that differ from the trainer's defaults (steps, batch_size, lr, ...).
        presets: named dicts of knobs and of training settings (steps, batch_size, lr, ema, ...) that apply where the user
            gives no value; `paper` is faithful to the official code where the default mends a known fault.
        needs_null, needs_forget, needs_retain: what a model and a data set must offer, checked before any work.
        shared: the prior is the same for every forget class.
        per_part: what the method does with a batch's gradients it may do with each part of a batch (`accumulate`).

    Attributes:
        run_steps: optimizer steps of the run, told by the trainer before `prepare`; 1 before that.
    """

    paper: ClassVar[str]
    training: ClassVar[dict[str, Any]] = {}
    presets: ClassVar[dict[str, dict[str, Any]]] = {}
    needs_null: ClassVar[bool] = False
    needs_forget: ClassVar[bool] = True
    needs_retain: ClassVar[bool] = True
    shared: ClassVar[bool] = False
    per_part: ClassVar[bool] = True

    run_steps: int = field(default=1, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check(self)

    def validate(self, model: Diffusion) -> None:
        """Raise InputError where the model lacks what the method needs; called before any work."""
        if self.needs_null and not model.has_null:
            raise InputError(f"{type(self).__name__} needs a null label and this model has none")

    def prepare(self, model: Diffusion, batches: Callable[[int], Batch]) -> None:
        """Work before step 0: Fisher information, a saliency mask, a frozen teacher, a closed-form edit."""

    def prior(self) -> dict[str, Any] | None:
        """Return what the state that `prepare` makes depends on beside model, data and seed, to keep it for later runs.

        None, the default, keeps nothing. A prior that is the same for every forget class leaves the class out (`shared`).
        """
        return None

    @abstractmethod
    def losses(self, model: Diffusion, batch: Batch) -> Iterator[Terms]:
        """Yield groups of named scalars; each group's sum gets its own backward before the next group is computed.

        One group shares one graph (SAFEMax: forget and retain rows in one pass). Several groups hold one graph at a time.
        """

    def backward(self, groups: Iterable[Terms], model: Diffusion, accumulate: Callable[[Tensor], None]) -> Terms:
        """Turn losses into gradients; override to balance or project the gradients of the groups.

        Args:
            groups: what `losses` yields.
            model: the model whose .grad fields are filled.
            accumulate: adds the gradient of a scalar to .grad (in every process, averaged over processes).

        Returns:
            every term, detached, by name.
        """
        terms: Terms = {}
        for group in groups:
            accumulate(torch.stack(list(group.values())).sum())
            terms |= {name: value.detach() for name, value in group.items()}
        return terms

    def constrain(self, model: Diffusion) -> None:
        """Change the gradients after clipping and before the optimizer's step: masks."""

    def step(self, model: Diffusion, batch: Batch, optimizer_step: OptimizerStep) -> Terms:
        """One step of the trainer; override for several optimizer steps a batch."""
        return optimizer_step(self.losses, batch)

    def trainable(self, model: Diffusion) -> Iterable[Parameter]:
        """Weights that the optimizer may touch; override for a subset such as the label embedding."""
        return model.parameters()

    def state(self) -> dict[str, Tensor]:
        """Return what `prepare` made, by name, for the checkpoint; its bytes are the method's side state."""
        return {}

    def facts(self) -> dict[str, float]:
        """Return numbers about the prior that belong beside the results, by name: the error of an estimate."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take back what `state` returned, instead of preparing again."""
