"""The interface of an unlearning method: what to minimise, and which weights may move. The trainer does the rest.

A method is one file in safemax/methods, with one dataclass in it; its name everywhere is the name of the file. Only
`paper` and `losses` are required. This is a whole file, finetune.py in short:

    from collections.abc import Iterator
    from dataclasses import dataclass
    from typing import Any, ClassVar

    from safemax.data.batches import Batch
    from safemax.diffusion.model import Diffusion
    from safemax.knobs import knob
    from safemax.training.method import Method, Terms


    @dataclass
    class Finetune(Method):
        \"\"\"One sentence, then what differs from the paper.\"\"\"

        paper: ClassVar[str] = "Ho et al., arXiv:2006.11239"
        training: ClassVar[dict[str, Any]] = {"steps": 500, "forget_share": 0.0}
        needs_forget: ClassVar[bool] = False

        null_drop: float = knob(0.1, "share of rows given the null label", bounds=(0, 1), without_null=0)

        def losses(self, diffusion: Diffusion, batch: Batch) -> Iterator[Terms]:
            x0, c = batch.retain.x0, batch.retain.c
            yield {"retain": diffusion.denoising_loss(x0, c, null_drop=self.null_drop)}

The order in which the trainer calls it:

    validate                      once, before any work
    prepare  or  load_state       once; load_state where a checkpoint or a cached prior exists
    trainable                     once; the weights that the optimizer gets
    step                          for each batch
        losses -> backward -> (clipping) -> constrain -> (optimizer)
    state                         for each checkpoint

The file alone adds the method to the command line, MLproject, MLflow's parameters, Optuna's search space and the README's
table, and to the tests of tests/safemax/methods/test_contract.py. Add one test file for what only this method claims.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn import Parameter

from safemax.data.batches import Batch, Batches
from safemax.diffusion.model import Diffusion
from safemax.diffusion.weights import CHOICES
from safemax.errors import InputError
from safemax.knobs import check, external, knobs

Terms = dict[str, Tensor]  # named scalars
Losses = Callable[[Diffusion, Batch], Iterable[Terms]]


class OptimizerStep(Protocol):
    """One optimizer step on the losses of a batch: backward, clipping, check for finite gradients, `constrain`, step."""

    def __call__(self, losses: Losses, batch: Batch, *, clip: float | None = None) -> Terms:
        """Return the terms, detached.

        Args:
            losses: the method's own, or others of the same form for an extra step.
            batch: what they are computed on.
            clip: largest gradient norm; None uses the training's.
        """
        ...


@dataclass
class Method(ABC):
    """An unlearning method; its knobs are the fields of its dataclass (safemax.knobs.knob), checked at construction.

    Class attributes:
        paper: the source: arXiv number, or citation with year.
        training: official training settings that differ from the defaults of Training (steps, batch_size, lr, ...).
        presets: named dicts of knobs and of training settings (steps, batch_size, lr, ema, ...) that apply where the user
            gives no value; `paper` follows the official code where the defaults correct a known fault of it.
        needs_null: the model must have a null label, whatever the knobs (else see without_null of a knob); checked before
            any work, like the next two.
        needs_forget: a batch must have forget rows.
        needs_retain: a batch must have retain rows.
        may_train: choices of weights (safemax.diffusion.weights) that it can work with: new adapters, which are 0, are not for
            a method that edits the weights themselves.
        shared: the prior is the same for every forget class.
        per_part: a batch may be split into parts whose gradients are summed (`accumulate`); False for a method that
            weighs gradients of the whole batch.
        noise_by_row: its steps draw by the model's `denoising_loss`, `times`, `noise_like` and `drop_labels` alone. Processes
            that share a step then give each row the noise that one process would, and differ from it by float rounding and by
            dropout; with any other method each process draws for itself.

    Attributes:
        run_steps: optimizer steps of the run, set by the trainer before `prepare`; 1 before that.
        steps_done: those before the one that `step` takes, set by the trainer before each; a resumed run counts on.
    """

    paper: ClassVar[str]
    training: ClassVar[dict[str, Any]] = {}
    presets: ClassVar[dict[str, dict[str, Any]]] = {}
    needs_null: ClassVar[bool] = False
    needs_forget: ClassVar[bool] = True
    needs_retain: ClassVar[bool] = True
    may_train: ClassVar[tuple[str, ...]] = CHOICES
    shared: ClassVar[bool] = False
    per_part: ClassVar[bool] = True
    noise_by_row: ClassVar[bool] = False

    run_steps: int = field(default=1, init=False, repr=False, compare=False)
    steps_done: int = field(default=0, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check(self)

    def validate(self, diffusion: Diffusion) -> None:
        """Raise InputError if the model lacks what the method needs; called before any work."""
        if diffusion.has_null:
            return
        if self.needs_null:
            raise InputError(f"{type(self).__name__} needs a null label and this model has none")
        for field_name, (_, about) in knobs(self).items():
            name, value, allowed = external(field_name), getattr(self, field_name), about.without_null
            if allowed is not None and value != allowed:
                raise InputError(
                    f"{name} = {value:g} is not allowed: it uses the null label, and the model has no null label; "
                    f"{name} must be {allowed:g}"
                )

    def prepare(self, diffusion: Diffusion, batches: Batches) -> None:
        """Work before step 0: Fisher information, a saliency mask, a frozen teacher, a closed-form edit.

        Args:
            diffusion: the model before unlearning; its weights may be changed here.
            batches: the batch of each step, from 0.
        """

    def prior(self) -> dict[str, Any] | None:
        """Return the knobs that the prepared state depends on, so that later runs can load it from the cache.

        Model, data, seed and the method's code are added by the trainer; so is the forget class, unless `shared`.
        None, the default, caches nothing.
        """
        return None

    @abstractmethod
    def losses(self, diffusion: Diffusion, batch: Batch) -> Iterator[Terms]:
        """Yield groups of named scalars; the sum of each group gets its own backward before the next is computed.

        Terms that share a forward pass belong in one group, which shares one graph. Several groups save memory: only one
        graph exists at a time.

        Args:
            diffusion: the model, in training mode.
            batch: forget and retain rows: x0, (N, C, H, W) in [-1, 1], and labels c, (N,).
        """

    def backward(self, groups: Iterable[Terms], diffusion: Diffusion, accumulate: Callable[[Tensor], None]) -> Terms:
        """Turn losses into gradients; override it to balance or project the gradients of the groups.

        Args:
            groups: what `losses` yields.
            diffusion: the model whose .grad fields are filled.
            accumulate: adds the gradient of a scalar to .grad (in every process, averaged over processes).

        Returns:
            every term, detached, by name.
        """
        terms: Terms = {}
        for group in groups:
            accumulate(torch.stack(list(group.values())).sum())
            terms |= {name: value.detach() for name, value in group.items()}
        return terms

    def constrain(self, diffusion: Diffusion) -> None:
        """Change the gradients after clipping and before the optimizer's step, for example by a mask."""

    def step(self, diffusion: Diffusion, batch: Batch, optimizer_step: OptimizerStep) -> Terms:
        """Process one batch; override it to take several optimizer steps on a batch."""
        return optimizer_step(self.losses, batch)

    def trainable(self, diffusion: Diffusion) -> Iterable[Parameter]:
        """Return the weights that may move; override it for a subset such as the label embedding."""
        return diffusion.parameters()

    def state(self) -> dict[str, Tensor]:
        """Return what `prepare` made, by name, for checkpoints; its size is reported as the method's side state."""
        return {}

    def facts(self) -> dict[str, float]:
        """Return numbers about the prior to report with the results, by name, such as the error of an estimate."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Restore what `state` returned, in place of `prepare`."""
