"""Worker processes: given jobs, heard, and replaced where they die; a job whose worker died goes to another."""

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
from safemax.errors import InputError, Stopped

RETRIES = 3
PATIENCE = 30.0  # seconds that a worker which is told to stop has for its checkpoint
_FINAL = ("done", "pruned", "failed")
# One thread each; and bars of several processes on one terminal tell nothing.
_SETTINGS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TQDM_MININTERVAL": "60"}

Message = dict[str, Any]


@dataclass
class Job:
    """Something for a worker to do, and the deaths of the workers that tried."""

    request: Message
    deaths: list[str] = field(default_factory=list)


Source = Callable[[], Job | None]
OnMessage = Callable[[Job, Message], bool]


@dataclass
class Channel:
    """A worker's side: lines of JSON from and to the coordinator."""

    source: IO[str]
    sink: IO[str]

    @classmethod
    def own(cls) -> Channel:
        """Return the channel of this process; what anyone prints from now on goes to stderr, and breaks no message."""
        channel = cls(sys.stdin, os.fdopen(os.dup(1), "w"))
        os.dup2(2, 1)
        return channel

    def receive(self) -> Message | None:
        """Return the next message; None where the coordinator closed its end."""
        line = self.source.readline()
        return json.loads(line) if line.endswith("\n") else None

    def send(self, kind: str, **content: Any) -> None:
        """Send a message."""
        self.sink.write(json.dumps({"kind": kind, **content}) + "\n")
        self.sink.flush()

    def ask(self, kind: str, **content: Any) -> bool:
        """Send a message whose answer is yes or no."""
        self.send(kind, **content)
        answer = self.receive()
        if answer is None:
            raise Stopped("the coordinator is gone")
        return bool(answer["answer"])


class Worker:
    """One child process, of one thread."""

    def __init__(self, module: str, task: Mapping[str, Any]) -> None:
        here = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        changes = {**_SETTINGS, LAUNCHER: str(os.getpid()), "PYTHONPATH": here}
        self.process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, **changes},
            start_new_session=True,  # Ctrl-C reaches the coordinator alone, which then ends its workers
        )  # fmt: skip
        self.job: Job | None = None
        self.ready = False
        self._waiting = b""
        self.send(task)

    @property
    def out(self) -> IO[bytes]:
        """Where its messages come from."""
        assert self.process.stdout
        return self.process.stdout

    def send(self, message: Mapping[str, Any]) -> None:
        """Send a line; to a dead worker, into the void: its end is heard where its messages are."""
        assert self.process.stdin
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()

    def close(self) -> None:
        """End its input: a worker that waits for a job ends."""
        assert self.process.stdin
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()

    def messages(self) -> list[Message] | None:
        """Return the whole messages that have come; None where it has ended."""
        piece = os.read(self.out.fileno(), 1 << 20)
        *lines, self._waiting = (self._waiting + piece).split(b"\n")
        return [json.loads(line) for line in lines] if piece else None

    def exit_reason(self) -> str:
        """Wait for its end and say how it came."""
        status = self.process.wait()
        how = signal.Signals(-status).name if status < 0 else f"status {status}"
        return f"{how} of worker {self.process.pid}"


class WorkerPool:
    """So many workers, alive from `with` to its end.

    A worker first gets the task, answers {"kind": "ready", ...} or {"kind": "refused", "reason": ...}, and then jobs.

    Attributes:
        greeting: what the first worker that was ready said.
    """

    def __init__(
        self, module: str, task: Mapping[str, Any], size: int, idle: Callable[[], None] = lambda: None
    ) -> None:
        """Prepare.

        Args:
            module: what `python -m` starts as a worker.
            task: what the workers load; JSON.
            size: how many there are.
            idle: called at least every second; it may raise, to end the work.
        """
        self._module, self._task, self._size, self.idle = module, dict(task), size, idle
        self._workers: list[Worker] = []
        self._selector = selectors.DefaultSelector()
        self._stillborn = 0
        self.greeting: Message = {}

    def __enter__(self) -> WorkerPool:
        """Start one worker, which makes what the caches lack; `run` starts the others."""
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
        """Do jobs until `source` has none and none is under way.

        Args:
            source: asked for the next job whenever a worker is free.
            on_message: gets a job's messages; where a worker asks, its result is the answer. Kinds: started, died (the job goes to
                another worker), what the worker sends on the way, and at the end one of done, pruned, failed.
        """
        again: deque[Job] = deque()
        while not self._assign(again, source, on_message) or any(worker.job for worker in self._workers):
            for worker, message in self._events():
                self._handle(worker, message, again, on_message)

    def _assign(self, again: deque[Job], source: Source, on_message: OnMessage) -> bool:
        """Give every free worker a job; return whether there are no more."""
        while len(self._workers) < self._size:
            self._start()
        for worker in self._workers:
            if worker.job or not worker.ready:
                continue
            job = again.popleft() if again else source()
            if job is None:
                return True
            worker.job = job
            worker.send(job.request)
            on_message(job, {"kind": "started"})  # the worker is at it while the job's run is opened
        return False

    def _handle(self, worker: Worker, message: Message, again: deque[Job], on_message: OnMessage) -> None:
        job = worker.job
        if job is None:
            return
        if message["kind"] == "died":
            job.deaths.append(message["how"])
            if len(job.deaths) > RETRIES:
                reason = f"its worker died {len(job.deaths)} times: {', '.join(job.deaths)}"
                on_message(job, {"kind": "failed", "reason": reason})
            else:
                on_message(job, message)
                again.append(job)
            return
        answer = on_message(job, message)
        if message["kind"] == "report":
            worker.send({"answer": answer})
        elif message["kind"] in _FINAL:
            worker.job = None

    def _events(self) -> Iterator[tuple[Worker, Message]]:
        """Wait up to a second; yield the messages of working workers, and a death as one."""
        self.idle()
        for key, _ in self._selector.select(timeout=1.0):
            worker: Worker = key.data
            messages = worker.messages()
            if messages is None:
                yield from self._worker_ended(worker)
            else:
                yield from ((worker, each) for each in self._greeted(worker, messages))

    def _greeted(self, worker: Worker, messages: Iterable[Message]) -> Iterator[Message]:
        for message in messages:
            if message["kind"] == "refused":
                raise InputError(message["reason"])
            if message["kind"] == "ready":
                worker.ready, self._stillborn = True, 0
                self.greeting = self.greeting or message
            else:
                yield message

    def _worker_ended(self, worker: Worker) -> Iterator[tuple[Worker, Message]]:
        self._selector.unregister(worker.out)
        self._workers.remove(worker)
        how = worker.exit_reason()
        if worker.job:
            yield worker, {"kind": "died", "how": how}
        elif not worker.ready:
            self._start_failed(how)
        if not self.greeting:
            self._start()

    def _start_failed(self, how: str) -> None:
        """Do with one worker less where several in a row died while they loaded: memory may not hold so many."""
        self._stillborn += 1
        if self._stillborn <= RETRIES:
            return
        said = f"{self._stillborn} workers in a row died before their first job, the last by {how}"
        self._size, self._stillborn = self._size - 1, 0
        if not self._size:
            raise RuntimeError(said)
        warnings.warn(f"{said}; the work goes on with workers = {self._size}", stacklevel=2)

    def _start(self) -> None:
        worker = Worker(self._module, self._task)
        self._workers.append(worker)
        self._selector.register(worker.out, selectors.EVENT_READ, worker)

    def _end(self) -> None:
        """Tell all to stop, give them a moment to write their checkpoints, and see to it that none is left."""
        for worker in self._workers:
            worker.process.terminate()
            worker.close()
        deadline = time.monotonic() + PATIENCE
        for worker in self._workers:
            try:
                worker.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
            self._selector.unregister(worker.out)
            worker.out.close()
        self._workers.clear()
