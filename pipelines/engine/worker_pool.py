"""Worker processes: they get jobs and send messages; a worker that dies is replaced, and its job goes to another one."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import IO, Any

from pipelines import ROOT
from pipelines.engine.signals import LAUNCHER
from pipelines.engine.worker import FINAL, REPORT, Message
from safemax.errors import InputError

RETRIES = 3
GRACE_SECONDS = 30.0  # for a worker that is told to stop to write its checkpoint
# One thread each; and progress bars of several processes on one terminal are unreadable.
_SETTINGS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TQDM_MININTERVAL": "60"}


@dataclass
class Job:
    """What a worker is to do, as JSON, and how each worker died that tried."""

    spec: Message
    deaths: list[str] = field(default_factory=list)


Source = Callable[[], Job | None]
OnMessage = Callable[[Job, Message], bool]


class Worker:
    """One child process, of one thread."""

    def __init__(self, module: str, config: Mapping[str, Any]) -> None:
        python_path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        changes = {**_SETTINGS, LAUNCHER: str(os.getpid()), "PYTHONPATH": python_path}
        self.process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, **changes},
            start_new_session=True,  # Ctrl-C reaches only the coordinator, which then ends its workers
        )  # fmt: skip
        self.job: Job | None = None
        self.ready = False
        self._incomplete = b""  # the start of a line whose end has not come yet
        self.send(config)

    @property
    def out(self) -> IO[bytes]:
        """Where its messages come from."""
        assert self.process.stdout
        return self.process.stdout

    def send(self, message: Mapping[str, Any]) -> None:
        """Send a line; nothing happens where the worker is dead: its end is noticed where its messages are read."""
        assert self.process.stdin
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()

    def close(self) -> None:
        """Close its input, which ends a worker that waits for a job."""
        assert self.process.stdin
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()

    def messages(self) -> list[Message] | None:
        """Return the complete messages that have arrived; None where the worker has ended."""
        received = os.read(self.out.fileno(), 1 << 20)
        *lines, self._incomplete = (self._incomplete + received).split(b"\n")
        return [json.loads(line) for line in lines] if received else None

    def exit_reason(self) -> str:
        """Wait for its end and return the signal or the exit status."""
        status = self.process.wait()
        reason = signal.Signals(-status).name if status < 0 else f"status {status}"
        return f"{reason} of worker {self.process.pid}"


class WorkerPool:
    """A fixed number of workers, alive inside `with`.

    Each worker loads its context from the configuration before its first job (pipelines.engine.worker).

    Attributes:
        greeting: the context's greeting, as the first worker that was ready sent it.
    """

    def __init__(
        self, module: str, config: Mapping[str, Any], size: int, on_tick: Callable[[], None] = lambda: None
    ) -> None:
        """Prepare.

        Args:
            module: what `python -m` starts as a worker.
            config: what the workers load their contexts from; JSON.
            size: number of workers.
            on_tick: called at least every second; it may raise, to end the work.
        """
        self._module, self._config, self._size, self.on_tick = module, dict(config), size, on_tick
        self._workers: list[Worker] = []
        self._selector = selectors.DefaultSelector()
        self._failed_starts = 0
        self.greeting: Message = {}

    def __enter__(self) -> WorkerPool:
        """Start one worker, which makes what the caches lack; `run` starts the others.

        Raises:
            InputError: the worker cannot load its context from the configuration.
        """
        try:
            self._start()
            while not self.greeting:
                for _ in self._events():
                    pass
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._end()

    def run(self, source: Source, on_message: OnMessage) -> None:
        """Do jobs until `source` has none left and none is running.

        Args:
            source: returns the next job; called whenever a worker is free.
            on_message: gets a job's messages; its result answers a report. Kinds: started, died (the job goes to another
                worker), what the worker sends on the way, and at the end one of done, pruned and failed.
        """
        requeued: deque[Job] = deque()
        while not self._assign(requeued, source, on_message) or any(worker.job for worker in self._workers):
            for worker, message in self._events():
                self._handle(worker, message, requeued, on_message)

    def _assign(self, requeued: deque[Job], source: Source, on_message: OnMessage) -> bool:
        """Give every free worker a job; return whether there are no more jobs."""
        while len(self._workers) < self._size:
            self._start()
        for worker in self._workers:
            if worker.job or not worker.ready:
                continue
            job = requeued.popleft() if requeued else source()
            if job is None:
                return True
            worker.job = job
            worker.send(job.spec)
            on_message(job, {"kind": "started"})  # the worker computes while the job's run is opened
        return False

    def _handle(self, worker: Worker, message: Message, requeued: deque[Job], on_message: OnMessage) -> None:
        job = worker.job
        if job is None:
            return
        if message["kind"] == "died":
            job.deaths.append(message["reason"])
            if len(job.deaths) > RETRIES:
                reason = f"its worker died {len(job.deaths)} times: {', '.join(job.deaths)}"
                on_message(job, {"kind": "failed", "reason": reason})
            else:
                on_message(job, message)
                requeued.append(job)
            return
        answer = on_message(job, message)
        if message["kind"] == REPORT:
            worker.send({"answer": answer})
        elif message["kind"] in FINAL:
            worker.job = None

    def _events(self) -> Iterator[tuple[Worker, Message]]:
        """Wait up to a second for messages; yield them with their workers, a death among them as a message of kind died."""
        self.on_tick()
        for key, _ in self._selector.select(timeout=1.0):
            worker: Worker = key.data
            messages = worker.messages()
            if messages is None:
                yield from self._worker_ended(worker)
            else:
                yield from ((worker, each) for each in self._after_greeting(worker, messages))

    def _after_greeting(self, worker: Worker, messages: Iterable[Message]) -> Iterator[Message]:
        for message in messages:
            if message["kind"] == "refused":
                raise InputError(message["reason"])
            if message["kind"] == "ready":
                worker.ready, self._failed_starts = True, 0
                self.greeting = self.greeting or message
            else:
                yield message

    def _worker_ended(self, worker: Worker) -> Iterator[tuple[Worker, Message]]:
        self._selector.unregister(worker.out)
        self._workers.remove(worker)
        reason = worker.exit_reason()
        if worker.job:
            yield worker, {"kind": "died", "reason": reason}
        elif not worker.ready:
            self._start_failed(reason)
        if not self.greeting:
            self._start()

    def _start_failed(self, reason: str) -> None:
        """Use one worker less where several in a row died while they loaded: there may be too little memory."""
        self._failed_starts += 1
        if self._failed_starts <= RETRIES:
            return
        failure = f"{self._failed_starts} workers in a row died before their first job, the last by {reason}"
        self._size, self._failed_starts = self._size - 1, 0
        if not self._size:
            raise RuntimeError(failure)
        warnings.warn(f"{failure}; continuing with workers = {self._size}", stacklevel=2)

    def _start(self) -> None:
        worker = Worker(self._module, self._config)
        self._workers.append(worker)
        self._selector.register(worker.out, selectors.EVENT_READ, worker)

    def _end(self) -> None:
        """Tell all workers to stop, give them time to write their checkpoints, and kill those that are still running."""
        for worker in self._workers:
            worker.process.terminate()
            worker.close()
        deadline = time.monotonic() + GRACE_SECONDS
        for worker in self._workers:
            try:
                worker.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
            self._selector.unregister(worker.out)
            worker.out.close()
        self._workers.clear()
