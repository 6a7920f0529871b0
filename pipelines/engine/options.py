"""How many workers do the jobs of a command, and on which machines."""

from __future__ import annotations

import re
from dataclasses import dataclass

from safemax.errors import InputError
from safemax.knobs import check, knob

NONE, AUTO = "none", "auto"


@dataclass(frozen=True)
class WorkerOptions:
    """Where jobs run. One worker without a cluster is this process; all others are Ray's."""

    workers: int = knob(
        1, "jobs that run at a time, each in a process of its own; 1 runs them in this process", bounds=(1, 4096)
    )
    gpus_per_worker: float = knob(
        1.0, "GPUs of each worker where there are any; 0.5 lets two workers share one", bounds=(0.01, 64)
    )
    cluster: str = knob(
        NONE,
        "machines of the workers: none (this one), auto (the Ray cluster that this one is in) or ray://HOST:10001",
        takes_auto=True,
    )

    def __post_init__(self) -> None:
        check(self)
        if self.cluster not in (NONE, AUTO) and not re.fullmatch(r"ray://[^/\s]+:\d+", self.cluster):
            raise InputError(f"cluster = {self.cluster} is not allowed; it is none, auto or ray://HOST:10001")
        if self.gpus_per_worker > 1 and self.gpus_per_worker % 1:
            raise InputError(f"gpus_per_worker = {self.gpus_per_worker:g} is not allowed; above 1 it is a whole number")

    @property
    def in_process(self) -> bool:
        """Whether jobs run in this process, without an engine."""
        return self.workers == 1 and self.cluster == NONE
