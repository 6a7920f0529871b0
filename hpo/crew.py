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
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from hpo.objective import Task
from pipelines.process import LAUNCHER
from safemax.errors import InputError

ROOT = Path(__file__).parent.parent
RETRIES = 3
_FINAL = ("done", "pruned", "failed")
# One thread each. And glibc is to keep the memory of large tensors: it hands each one back to the kernel, and the page faults
# of getting it again are a quarter of the time of sampling 500 images at once.
_KEPT_BYTES = str(1 << 30)
_SETTINGS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
_SETTINGS |= {"MALLOC_MMAP_THRESHOLD_": _KEPT_BYTES, "MALLOC_TRIM_THRESHOLD_": _KEPT_BYTES}

Message = dict[str, Any]


@dataclass
class Job:
    """Something for a worker to do, and the deaths of the workers that tried."""

    request: Message
    deaths: list[str] = field(default_factory=list)


Source = Callable[[], Job | None]
Hear = Callable[[Job, Message], bool]


class Worker:
    """One child process."""

    def __init__(self, task: Task) -> None:
        here = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        changes = {**_SETTINGS, LAUNCHER: str(os.getpid()), "PYTHONPATH": here}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "hpo.worker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, **changes},
            start_new_session=True,  # Ctrl-C reaches the coordinator alone, which then ends its workers
        )  # fmt: skip
        self.job: Job | None = None
        self.ready = False
        self._waiting = b""
        self.send(asdict(task))

    @property
    def out(self) -> IO[bytes]:
        """Where its messages come from."""
        assert self.process.stdout
        return self.process.stdout

    def send(self, message: Message) -> None:
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

    def heard(self) -> list[Message] | None:
        """Return the whole messages that have come; None where it has ended."""
        piece = os.read(self.out.fileno(), 1 << 20)
        *lines, self._waiting = (self._waiting + piece).split(b"\n")
        return [json.loads(line) for line in lines] if piece else None

    def fate(self) -> str:
        """Wait for its end and say how it came."""
        status = self.process.wait()
        how = signal.Signals(-status).name if status < 0 else f"status {status}"
        return f"{how} of worker {self.process.pid}"


class Crew:
    """So many workers, alive from `with` to its end.

    Attributes:
        base: metrics of the model to correct, as the first worker measured them.
        judges: what is known of the judges.
    """

    def __init__(self, task: Task, size: int, idle: Callable[[], None] = lambda: None) -> None:
        """Prepare.

        Args:
            task: what the workers load.
            size: how many there are.
            idle: called at least every second; it may raise, to end the work.
        """
        self._task, self._size, self.idle = task, size, idle
        self._workers: list[Worker] = []
        self._selector = selectors.DefaultSelector()
        self._stillborn = 0
        self.base: dict[str, float] = {}
        self.judges: dict[str, Any] = {}

    def __enter__(self) -> Crew:
        """Start one worker, which makes what the caches lack (judges, base samples), then the others."""
        try:
            self._start()
            while not self.base:
                for _ in self._events():
                    pass
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._end()

    def run(self, source: Source, hear: Hear) -> None:
        """Do jobs until `source` has none and none is under way.

        Args:
            source: asked for the next job whenever a worker is free.
            hear: gets a job's messages; for a report its result is the answer. Kinds: started, log, report, died (the job
                goes to another worker), and at the end one of done, pruned, failed.
        """
        again: deque[Job] = deque()
        while not self._assign(again, source, hear) or any(worker.job for worker in self._workers):
            for worker, message in self._events():
                self._heed(worker, message, again, hear)

    def _assign(self, again: deque[Job], source: Source, hear: Hear) -> bool:
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
            hear(job, {"kind": "started"})  # the worker is at it while the job's run is opened
        return False

    def _heed(self, worker: Worker, message: Message, again: deque[Job], hear: Hear) -> None:
        job = worker.job
        if job is None:
            return
        if message["kind"] == "died":
            job.deaths.append(message["how"])
            if len(job.deaths) > RETRIES:
                hear(
                    job,
                    {"kind": "failed", "reason": f"its worker died {len(job.deaths)} times: {', '.join(job.deaths)}"},
                )
            else:
                hear(job, message)
                again.append(job)
            return
        answer = hear(job, message)
        if message["kind"] == "report":
            worker.send({"answer": answer})
        elif message["kind"] in _FINAL:
            worker.job = None

    def _events(self) -> Iterator[tuple[Worker, Message]]:
        """Wait up to a second; yield the messages of working workers, and a death as one."""
        self.idle()
        for key, _ in self._selector.select(timeout=1.0):
            worker: Worker = key.data
            messages = worker.heard()
            if messages is None:
                yield from self._bury(worker)
            else:
                yield from ((worker, each) for each in self._greeted(worker, messages))

    def _greeted(self, worker: Worker, messages: Iterable[Message]) -> Iterator[Message]:
        for message in messages:
            if message["kind"] == "refused":
                raise InputError(message["reason"])
            if message["kind"] == "ready":
                worker.ready, self._stillborn = True, 0
                self.base, self.judges = message["base"], message["judges"]
            else:
                yield message

    def _bury(self, worker: Worker) -> Iterator[tuple[Worker, Message]]:
        self._selector.unregister(worker.out)
        self._workers.remove(worker)
        how = worker.fate()
        if worker.job:
            yield worker, {"kind": "died", "how": how}
        elif not worker.ready:
            self._mourn(how)
        if not self.base:
            self._start()

    def _mourn(self, how: str) -> None:
        """Do with one worker less where several in a row died while they loaded: memory may not hold so many."""
        self._stillborn += 1
        if self._stillborn <= RETRIES:
            return
        said = f"{self._stillborn} workers in a row died before their first job, the last by {how}"
        self._size, self._stillborn = self._size - 1, 0
        if not self._size:
            raise RuntimeError(said)
        warnings.warn(f"{said}; the search goes on with workers = {self._size}", stacklevel=2)

    def _start(self) -> None:
        worker = Worker(self._task)
        self._workers.append(worker)
        self._selector.register(worker.out, selectors.EVENT_READ, worker)

    def _end(self) -> None:
        """Tell all to stop, give them a moment to write their checkpoints, and see to it that none is left."""
        for worker in self._workers:
            worker.process.terminate()
            worker.close()
        deadline = time.monotonic() + 10
        for worker in self._workers:
            try:
                worker.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
            self._selector.unregister(worker.out)
            worker.out.close()
        self._workers.clear()
