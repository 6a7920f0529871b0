"""A worker's context whose jobs do nothing: what is left of a study's time is the engine's."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

from pipelines.engine.options import WorkerOptions
from pipelines.engine.signals import StopSignal
from pipelines.engine.worker import Message, Send
from pipelines.engine.workers import Job, open_workers


@dataclass(frozen=True)
class Nothing:
    """Nothing to load from."""


class Idle:
    """Does nothing, by a module that has imported what a trial's has."""

    @property
    def greeting(self) -> Message:
        """Nothing."""
        return {}

    def do(self, job: Message, send: Send) -> Message:
        """Do nothing."""
        return {}


def load(config: Message, stop: StopSignal) -> Idle:
    """Return the context of a worker."""
    import hpo.trial  # noqa: F401 - its imports are what a worker of a search waits for

    return Idle()


def seconds(jobs: int, workers: int) -> dict[str, float]:
    """Return what so many empty jobs take, by part: until the first worker is ready, the jobs, and the end."""
    waiting = deque(Job({}) for _ in range(jobs))
    marks = [time.perf_counter()]
    options = WorkerOptions(workers=workers)
    with open_workers(options, load, Nothing(), StopSignal(), lambda: None, device="cpu") as opened:
        marks.append(time.perf_counter())
        opened.run(lambda: waiting.popleft() if waiting else None, lambda job, message: False)
        marks.append(time.perf_counter())
    marks.append(time.perf_counter())
    names = ("start s", "jobs s", "end s")
    return dict(zip(names, (after - before for before, after in zip(marks, marks[1:], strict=False)), strict=True))
