"""The settings of a training run, and whether they go together with a method."""

from __future__ import annotations

import math
from dataclasses import dataclass

from safemax.diffusion.weights import CHOICES
from safemax.errors import InputError
from safemax.knobs import INFINITY, check, knob
from safemax.training.method import Method


@dataclass(frozen=True, kw_only=True)
class Training:
    """How the loop runs, whatever the method. The optimizer is Adam (0.9, 0.999), eps 1e-8."""

    steps: int = knob(1000, "optimizer steps", bounds=(0, 10_000_000), search=(50, 2000), log=True)
    minutes: float = knob(
        0.0,
        "minutes to train instead of `steps`, set-up not counted; lr_end is reached at their end; 0 trains for `steps`",
        bounds=(0, 100_000),
        added=True,
    )
    batch_size: int = knob(128, "rows of a step, over all processes, forget and retain together", bounds=(1, 1_000_000))
    forget_share: float = knob(0.5, "share of the rows that are forget rows", bounds=(0, 1))
    lr: float = knob(1e-4, "learning rate of Adam", bounds=(0, 10), search=(1e-5, 1e-3), log=True)
    lr_end: float = knob(
        1.0,
        "learning rate of the last step as a share of lr, reached along a cosine; 1 keeps lr constant",
        bounds=(0, 1),
    )
    warmup: int = knob(0, "steps over which the learning rate rises from 0", bounds=(0, 10_000_000))
    weight_decay: float = knob(
        0.0, "decoupled weight decay; must be 0 with a mask, since it would move masked weights", bounds=(0, 1)
    )
    clip: float = knob(1.0, "largest L2 norm of the gradient", bounds=(0, INFINITY))
    ema: float = knob(
        0.0,
        "decay of the moving average of the weights, which replaces them at the end; 0 keeps the last weights",
        bounds=(0, 1),
    )
    ema_warmup: bool = knob(
        False, "let the moving average's decay rise as (1 + n) / (10 + n) over the steps n until it is ema", added=True
    )
    seed: int = knob(0, "fixes batches, noise and initial weights", bounds=(0, 2**62))
    trainable: str = knob(
        "all",
        "weights that may move: all, those of attention, cross_attention (where a prompt enters) or label_embedding, or lora: "
        "adapters of the linear layers, merged at the end",
        choices=CHOICES,
        added=True,
    )
    lora_rank: int = knob(16, "rank of the adapters of trainable = lora", bounds=(1, 1024), added=True)
    gradient_checkpointing: bool = knob(
        False,
        "compute the forward pass again, block by block, in the backward pass: less memory for a third more time",
        added=True,
    )
    precision: str = knob(
        "fp32", "arithmetic of the denoiser; auto is bf16 on a GPU, else fp32", choices=("fp32", "bf16", "auto")
    )
    optimizer_state: str = knob(
        "fp32",
        "Adam's two moments: fp32, or 8bit, a quarter of the memory, by bitsandbytes (pip install 'safemax[eight_bit]')",
        choices=("fp32", "8bit"),
        added=True,
    )
    compile: str = knob(
        "auto",
        "torch.compile of the denoiser: auto on a GPU where a run is long enough to pay for it, none, or max for the fastest code "
        "that it finds",
        choices=("auto", "none", "max"),
        added=True,
    )
    channels_last: bool = knob(
        False,
        "let the weights of convolutions lie in memory channels last, for a GPU's bf16 convolutions; not measured on one yet",
        added=True,
    )
    accumulate: int = knob(1, "passes that a step's rows are split into, to save memory", bounds=(1, 1024))
    device: str = knob("auto", "auto uses a GPU if there is one", choices=("auto", "cpu", "cuda"))
    checkpoint_every: int = knob(
        100, "steps between checkpoints (on a GPU, a minute); 0 writes none before the end", bounds=(0, 10_000_000)
    )

    def __post_init__(self) -> None:
        check(self)
        if self.forget_rows % self.accumulate or self.retain_rows % self.accumulate:
            rows = f"{self.forget_rows} forget and {self.retain_rows} retain rows"
            raise InputError(f"accumulate = {self.accumulate} does not divide {rows}; use a divisor of both")
        if self.channels_last and self.optimizer_state == "8bit":
            raise InputError(
                "channels_last = true is not allowed with optimizer_state = 8bit: bitsandbytes moves the weights to new memory, "
                "channels first, and the moving average would not follow them"
            )

    def share_used(self, step: int, minutes: float) -> float:
        """Return the share of the run that is over, from 0 to 1, after so many steps, or minutes where they are the budget."""
        if self.minutes:
            return min(1.0, minutes / self.minutes)
        return min(1.0, step / self.steps) if self.steps else 1.0

    def lr_at(self, step: int, minutes: float = 0.0) -> float:
        """Return the learning rate of a step, from 0: a linear rise over `warmup`, then half a cosine to lr_end * lr.

        Where minutes are the budget, the cosine runs over all of them and the rise limits its first steps.

        Args:
            step: steps done.
            minutes: that they took.
        """
        if self.minutes:
            rise = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
            return min(self.lr * rise, self._cosine(self.share_used(step, minutes)))
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        return self._cosine((step - self.warmup) / max(1, self.steps - 1 - self.warmup))

    def ema_at(self, step: int) -> float:
        """Return the decay of the moving average at a step, from 0."""
        return min(self.ema, (1 + step) / (10 + step)) if self.ema_warmup else self.ema

    def _cosine(self, share: float) -> float:
        return self.lr * (self.lr_end + (1 - self.lr_end) * (1 + math.cos(math.pi * min(1.0, share))) / 2)

    @property
    def length(self) -> str:
        """The field that says how long a run is: minutes where they are given, else steps."""
        return "minutes" if self.minutes else "steps"

    @property
    def forget_rows(self) -> int:
        """Forget rows of a step."""
        return round(self.batch_size * self.forget_share)

    @property
    def retain_rows(self) -> int:
        """Retain rows of a step."""
        return self.batch_size - self.forget_rows


def validate(method: Method, training: Training, forget: tuple[int, ...]) -> None:
    """Raise InputError where a method cannot run with these settings and forget labels."""
    _validate_rows(method, training, forget)
    name = type(method).__name__
    if training.accumulate > 1 and not method.per_part:
        raise InputError(
            f"accumulate = {training.accumulate} is not allowed with {name}, which weighs the gradients of a whole batch; "
            "accumulate must be 1"
        )
    if training.trainable not in method.may_train:
        raise InputError(
            f"trainable = {training.trainable} is not allowed with {name}, {_why_not(method)}; "
            f"it may be {', '.join(method.may_train)}"
        )
    if training.optimizer_state == "8bit" and type(method).constrain is not Method.constrain:
        raise InputError(
            f"optimizer_state = 8bit is not allowed with {name}: a moment of 0 is not 0 in 8 bits and would move weights that "
            "the method holds; optimizer_state must be fp32"
        )
    if training.weight_decay and type(method).constrain is not Method.constrain:
        raise InputError(
            f"weight_decay = {training.weight_decay:g} is not allowed with {name}: it would move weights that the method "
            "holds; weight_decay must be 0"
        )


def _why_not(method: Method) -> str:
    if method.may_train == ("all",):
        return "which begins with new values of all weights"
    return "which edits the weights themselves, and adapters begin at 0"


def validate_parts(training: Training, processes: int) -> None:
    """Raise InputError where accumulation would split a step into unequal parts, which count alike."""
    for name, rows in (("forget", training.forget_rows), ("retain", training.retain_rows)):
        if rows % (processes * training.accumulate) and training.accumulate > 1:
            raise InputError(
                f"accumulate = {training.accumulate} on {processes} processes does not divide {rows} {name} rows into equal parts"
            )


def _validate_rows(method: Method, training: Training, forget: tuple[int, ...]) -> None:
    name, share = type(method).__name__, f"forget_share = {training.forget_share:g}"
    if method.needs_forget and not training.forget_rows:
        raise InputError(f"{share} of batch_size = {training.batch_size} leaves no forget rows, which {name} needs")
    if training.forget_rows and not forget:
        raise InputError(f"{share} is not allowed without classes to forget; forget_share must be 0")
    if method.needs_retain and not training.retain_rows:
        raise InputError(f"{share} of batch_size = {training.batch_size} leaves no retain rows, which {name} needs")
