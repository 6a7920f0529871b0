"""A plan: the stages of a command with their minutes and disk space, as text."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from pipelines import tracking

_WIDTH = 100


@dataclass(frozen=True)
class Stage:
    """A part of a command's work.

    Args:
        name: what the part is called, also by its progress bar.
        does: what it does, in words.
        minutes: how long it takes on this machine.
        megabytes: what it leaves on the disk.
        reused: whether an earlier run did it, so that it takes no time.
        parallel: how many processes share it.
    """

    name: str
    does: str
    minutes: float = 0.0
    megabytes: float = 0.0
    reused: bool = False
    parallel: int = 1

    @property
    def takes(self) -> float:
        """Minutes that pass until it is done."""
        return 0.0 if self.reused else self.minutes / self.parallel


@dataclass(frozen=True)
class Plan:
    """What a command would do.

    Args:
        title: what it is about.
        stages: in order.
        logs: what would be in MLflow afterwards.
        basis: how the minutes were found.
    """

    title: str
    stages: Sequence[Stage]
    logs: str
    basis: str

    @property
    def minutes(self) -> float:
        """How long the command takes."""
        return sum(each.takes for each in self.stages)

    def text(self) -> str:
        """Return the plan for a terminal."""
        whole = (
            f"in all about {duration(self.minutes)}, {size(sum(each.megabytes for each in self.stages))} of disk space"
        )
        parts = [f"{self.title}: {whole}", self.table(), f"Logged: {self.logs}", self.basis]
        return "\n\n".join(textwrap.fill(each, _WIDTH) if "\n" not in each else each for each in parts)

    def table(self) -> str:
        """Return a line for each stage."""
        names = [each.name for each in self.stages]
        width = max(map(len, names))
        times = ["kept" if each.reused else duration(each.takes) for each in self.stages]
        rows = zip(names, times, self.stages, strict=True)
        return "\n".join(f"  {name:<{width}}  {time:>8}  {stage.does}" for name, time, stage in rows)


def alike(stages: Sequence[Stage], of_what: str, parallel: int = 1) -> Stage:
    """Return stages of one kind as one: their minutes and space are added, and it is kept where all are.

    Args:
        stages: at least one.
        of_what: what there are several of, such as classes.
        parallel: how many processes share them.
    """
    new = [each for each in stages if not each.reused]
    does = f"{len(stages)} {of_what}, {len(stages) - len(new)} kept: {stages[0].does}"
    minutes, megabytes = sum(each.minutes for each in new), sum(each.megabytes for each in new)
    return Stage(stages[0].name, does, minutes, megabytes, not new, parallel)


def show(plan: Plan) -> None:
    """Print a plan, and write it on the run that `mlflow run` opened for this process, if it did."""
    print(plan.text(), flush=True)
    tracking.describe_unjoined("plan", f"plan: {plan.title}", plan.text())


def duration(minutes: float) -> str:
    """Return minutes as a person reads them: 12 s, 4 min, 13 h, 3 days."""
    if minutes < 1.5:
        return f"{60 * minutes:.0f} s"
    if minutes < 90:
        return f"{minutes:.0f} min"
    return f"{minutes / 60:.0f} h" if minutes < 48 * 60 else f"{minutes / 1440:.0f} days"


def size(megabytes: float) -> str:
    """Return a size on the disk as a person reads it: 12 MB, 1.5 GB."""
    return f"{megabytes / 1000:.1f} GB" if megabytes >= 1000 else f"{max(1.0, megabytes):.0f} MB"
