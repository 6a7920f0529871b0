"""What a caller may attach to a training run: functions that the loop calls, and folders that it uses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Log = Callable[[dict[str, float], int], None]


@dataclass(frozen=True)
class Hooks:
    """What the loop calls; None calls nothing.

    Attributes:
        log: called with {"loss/<term>": value} and the number of steps done, every tenth step and after the last.
        on_step_end: called after each step with the number of steps done, to measure or draw on the way.
        should_stop: called before each step; True ends the run with a checkpoint and Stopped.
        progress: show a bar with losses and speed.
        title: what the bar is called; the method's name where it is empty.
    """

    log: Log | None = None
    on_step_end: Callable[[int], None] | None = None
    should_stop: Callable[[], bool] = lambda: False
    progress: bool = True
    title: str = ""


@dataclass(frozen=True)
class Folders:
    """Where a run keeps what can be used again; by default it writes nothing.

    Attributes:
        checkpoints: of this run; a whole checkpoint in it is resumed.
        priors: cache of what methods prepare (Fisher information, masks, replay images), shared by runs.
        origin: the name of this run, stored in its checkpoints and returned to the run that resumes it.
    """

    checkpoints: Path | None = None
    priors: Path | None = None
    origin: str = ""
