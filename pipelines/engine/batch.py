"""A list of jobs that may run in any order: done by workers, with progress, and a line for each that ends or changes hands."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pipelines.engine.options import WorkerOptions
from pipelines.engine.progress import Progress
from pipelines.engine.worker import FINAL, Message
from pipelines.engine.workers import Job, Workers
from safemax.errors import Stopped


@dataclass
class Batches:
    """What became of jobs.

    Args:
        options: of the workers.
        name_of: a job in words.
        on_done: gets a job and its result; returns what to print of it, "" for nothing.
        on_death: called with `deaths` when a worker died and its job goes to another one.

    Attributes:
        failures: failed jobs and the reasons.
        deaths: how workers died, a line each.
    """

    options: WorkerOptions
    name_of: Callable[[Message], str]
    on_done: Callable[[Message, Message], str]
    on_death: Callable[[Sequence[str]], None] = lambda deaths: None
    failures: list[tuple[Message, str]] = field(default_factory=list)
    deaths: list[str] = field(default_factory=list)

    def do(self, workers: Workers, jobs: Sequence[Message]) -> None:
        """Do all jobs; a failed one does not end the others."""
        waiting = deque(jobs)

        def source() -> Job | None:
            return Job(waiting.popleft()) if waiting else None

        with Progress.of(len(jobs), 0, self.options, "job") as progress:

            def on_message(job: Job, message: Message) -> bool:
                if message["kind"] in FINAL:
                    progress.ended(id(job))
                if line := self._record(job.spec, message):
                    progress.say(f"{self.name_of(job.spec)}: {line}")
                return False

            workers.run(source, on_message)

    @property
    def first_failure(self) -> str:
        """The first failed job and its reason, in words."""
        job, reason = self.failures[0]
        return f"{self.name_of(job)}: {reason}"

    def _record(self, spec: Message, message: Message) -> str:
        """Keep what a message brings and return it in words; "" where there is nothing to say."""
        if message["kind"] == "done":
            return self.on_done(spec, message)
        if message["kind"] == "failed":
            self.failures.append((spec, message["reason"]))
            return f"failed: {message['reason']}"
        if message["kind"] == "died":
            self.deaths.append(f"{self.name_of(spec)}: {message['reason']}")
            self.on_death(self.deaths)
            return f"{message['reason']}; another worker runs it"
        return ""


def raise_if_stopped(stop: Callable[[], bool], work: str = "") -> Callable[[], None]:
    """Return what to call every second, which ends the work once the user stopped it.

    Args:
        stop: whether the user has.
        work: what the same command resumes, such as "the study", for the message.
    """

    def tick() -> None:
        if stop():
            raise Stopped(f"the same command resumes {work}".rstrip())

    return tick
