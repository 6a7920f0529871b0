"""The driver's side: jobs go to workers, in this process or on a cluster, and their messages come back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from pipelines.engine.options import WorkerOptions
from pipelines.engine.signals import StopSignal
from pipelines.engine.worker import Load, Message, attempt

RETRIES = 3  # of a job whose worker died


@dataclass
class Job:
    """What a worker is to do, as JSON, and how each worker died that tried."""

    spec: Message
    deaths: list[str] = field(default_factory=list)


Source = Callable[[], Job | None]
OnMessage = Callable[[Job, Message], bool]


class Workers(Protocol):
    """What does jobs, inside `with`.

    Attributes:
        greeting: the context's greeting, as the first worker that was ready sent it.
    """

    greeting: Message

    def run(self, source: Source, on_message: OnMessage) -> None:
        """Do jobs until `source` has none left and none is running.

        Args:
            source: returns the next job; called whenever a worker is free.
            on_message: gets a job's messages; its result answers a report. Kinds: started, died (the job goes to another
                worker), what the worker sends on the way, and at the end one of done, pruned and failed.
        """

    def tick(self) -> None:
        """Look after what has to be looked after every second; it may raise, to end the work."""

    def __enter__(self) -> Workers: ...

    def __exit__(self, *error: object) -> None: ...


class _DriverFailed(BaseException):
    """Ends a job in which the driver failed to handle a message, as where its store fails: no `except Exception` catches it."""


class InProcess:
    """One worker, which is this process."""

    def __init__(self, load: Load, config: Message, stop: StopSignal, on_tick: Callable[[], None]) -> None:
        self._load, self._config, self._stop, self.tick = load, config, stop, on_tick
        self.greeting: Message = {}

    def __enter__(self) -> InProcess:
        with self._stop.interruptible():
            self._context = self._load(self._config, self._stop)
        self.greeting = self._context.greeting
        return self

    def __exit__(self, *error: object) -> None:
        del self._context

    def run(self, source: Source, on_message: OnMessage) -> None:
        self.tick()
        while (job := source()) is not None:
            self._do(job, on_message)
            self.tick()

    def _do(self, job: Job, on_message: OnMessage) -> None:
        failures: list[Exception] = []

        def send(message: Message) -> bool:
            try:
                return on_message(job, message)
            except Exception as error:
                failures.append(error)
                raise _DriverFailed from None

        on_message(job, {"kind": "started"})
        with suppress(_DriverFailed):
            ending = attempt(self._context, job.spec, send)
        if failures:
            raise failures[0]
        on_message(job, ending)


def open_workers(
    options: WorkerOptions,
    load: Load,
    config: Any,
    stop: StopSignal,
    on_tick: Callable[[], None],
    *,
    device: str = "auto",
) -> Workers:
    """Return the workers that the options ask for.

    Args:
        options: how many, and where.
        load: loads a worker's context; a function of a module.
        config: what it loads from: a dataclass of JSON values.
        stop: raised, it ends the work.
        on_tick: see `Workers.tick`.
        device: of the training's settings; cpu asks for no GPU.

    Raises:
        InputError: the options ask for what the machine or the cluster does not have.
    """
    facts: Mapping[str, Any] = asdict(config)
    if options.in_process:
        return InProcess(load, dict(facts), stop, on_tick)
    from pipelines.engine.ray_workers import RayWorkers  # only who asks for an engine waits for it

    return RayWorkers(options, load, dict(facts), on_tick, device)
