"""How much of a run is over, by steps or by minutes, and the time that its steps take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator

from safemax.errors import note
from safemax.training.devices import compiles
from safemax.training.result import Cost
from safemax.training.settings import Training


class Budget:
    """The steps or the minutes of a run.

    Args:
        training: says which of the two, and how many.
        accelerator: of the run; where minutes count, its processes agree on them.
        cost: of the run so far; the time of its steps is added to it.
        done: steps that were done before.
    """

    def __init__(self, training: Training, accelerator: Accelerator, cost: Cost, done: int) -> None:
        self.training, self.cost, self.done = training, cost, done
        self._accelerator, self._compiles = accelerator, compiles(training)
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @property
    def share_used(self) -> float:
        """Share of the run that is over, from 0 to 1."""
        return self.training.share_used(self.done, self.cost.runtime_minutes)

    @property
    def is_spent(self) -> bool:
        """Whether no step is left to take."""
        return self.share_used >= 1

    @property
    def lr(self) -> float:
        """Learning rate of the next step."""
        return self.training.lr_at(self.done, self.cost.runtime_minutes)

    @property
    def expected_steps(self) -> int:
        """Steps of the whole run, at least 1; by the pace so far where minutes are the budget."""
        if self.training.minutes and self.done and self.share_used:
            return max(1, round(self.done / self.share_used))
        return max(1, self.training.steps)

    @contextmanager
    def step(self) -> Iterator[None]:
        """Time one step and count it; the first one compiles where the denoiser is compiled, which is set-up.

        On a GPU the time of a step is known when the GPU has done it, and counts from the next `settle` on.
        """
        if self._accelerator.device.type == "cuda" and not self._compiles:
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            yield
            end.record()
            self._events.append((begin, end))
        else:
            started = time.perf_counter()
            yield
            self._count((time.perf_counter() - started) / 60)
        self.done += 1

    def settle(self) -> None:
        """Wait for the steps that a GPU has still to do, and count their time."""
        if self._events:
            self._events[-1][1].synchronize()
            self._count(sum(begin.elapsed_time(end) for begin, end in self._events) / 60_000)
            self._events = []

    def _count(self, minutes: float) -> None:
        if self._compiles:
            self.cost.setup_minutes += minutes
            self._compiles = False
            return
        self.cost.runtime_minutes += minutes
        if self.training.minutes and self._accelerator.num_processes > 1:
            self._agree()

    def _agree(self) -> None:
        """Replace the minutes by their mean over processes, which must take the same steps at the same learning rates."""
        spent = torch.tensor(self.cost.runtime_minutes, device=self._accelerator.device)
        self.cost.runtime_minutes = self._accelerator.reduce(spent, "mean").item()

    def __str__(self) -> str:
        """Return what is done, such as 10 of 100 steps."""
        if self.training.minutes:
            return f"{self.done} steps and {self.cost.runtime_minutes:.1f} of {self.training.minutes:g} minutes"
        return f"{self.done} of {self.training.steps} steps"

    def warn_of_slow_average(self) -> None:
        """Warn where the moving average would mostly be the weights that the run started from."""
        training = self.training
        share = training.ema**training.steps
        if training.ema and share > 0.5 and not (training.minutes or training.ema_warmup):
            note(
                f"ema = {training.ema:g} over {training.steps} steps keeps {share:.0%} of the weights it started from",
                stacklevel=5,
            )

    def warn_of_long_warmup(self) -> None:
        """Warn where the run ends before its learning rate has risen, as one does that is shorter than a preset's warm-up."""
        training = self.training
        if 0 < training.steps <= training.warmup and not training.minutes:
            reached = training.lr_at(training.steps - 1)
            note(
                f"warmup = {training.warmup} leaves none of the {training.steps} steps after it: the learning rate only rises, "
                f"to {reached:.2g} of lr = {training.lr:g}",
                stacklevel=5,
            )
