"""Workers on Ray: a worker that dies is replaced, and its job goes to another one."""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pipelines.engine import ray_cluster
from pipelines.engine.options import NONE, WorkerOptions
from pipelines.engine.ray_worker import RayWorker
from pipelines.engine.relay import MADE, WANT, Origin
from pipelines.engine.source_tree import tree_digest
from pipelines.engine.worker import FINAL, REPORT, Load, Message
from pipelines.engine.workers import RETRIES, Job, OnMessage, Source
from safemax.errors import InputError, note
from safemax.storage import cache

GRACE_SECONDS = 30.0  # for a worker that is told to stop to write its checkpoint
_ASK_SECONDS = 20.0  # that a worker waits for something to say, before it is asked again
_TINY_SHARE = 0.001  # of a core, for placement: threads are given, not reserved


class _Worker:
    """An actor, as the driver sees it."""

    def __init__(self, actor: Any) -> None:
        self.actor, self.ready, self.stopped = actor, False, False
        self.name = "a worker that was starting"
        self.job: Job | None = None
        self.ask()

    def ask(self) -> None:
        """Ask for its next messages; `answer` will hold them."""
        self.answer = self.actor.messages.remote(_ASK_SECONDS)

    def give(self, message: Message) -> None:
        """Send a job, or the answer to a report; nothing happens where the worker is dead: its next messages say so."""
        self.actor.give.remote(json.dumps(message))


class RayWorkers:
    """A fixed number of workers on a cluster, alive inside `with`.

    Args:
        options: how many, and where.
        load: loads a worker's context.
        config: what it loads from; JSON.
        on_tick: called at least every second; it may raise, to end the work.
        device: of the training's settings; cpu asks for no GPU.
    """

    def __init__(
        self, options: WorkerOptions, load: Load, config: Message, on_tick: Callable[[], None], device: str
    ) -> None:
        self._options, self._device, self.tick, self._size = options, device, on_tick, options.workers
        self._start_facts: Message = {
            "load": f"{load.__module__}:{load.__name__}", "config": config, "folder": os.getcwd(),
            "code": tree_digest(), "marker": "", "cache": str(cache.root().absolute()),
        }  # fmt: skip
        self._workers: list[_Worker] = []
        self._failed_starts = 0
        self._closing = ExitStack()
        self.greeting: Message = {}

    def __enter__(self) -> RayWorkers:
        """Start one worker, which makes what the caches lack; `run` starts the others.

        Raises:
            InputError: there are too few GPUs or no cluster, or the worker cannot load its context from the configuration.
        """
        try:
            self._connect()
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
        """See `Workers.run`."""
        requeued: deque[Job] = deque()
        while not self._assign(requeued, source, on_message) or any(worker.job for worker in self._workers):
            for worker, message in self._events():
                self._handle(worker, message, requeued, on_message)

    def _connect(self) -> None:
        self._closing.enter_context(ray_cluster.connected(self._options))
        self._ray = ray_cluster.module(self._options)
        nodes = ray_cluster.nodes(self._ray)
        threads, gpus = (
            ray_cluster.threads_for(self._options, nodes),
            ray_cluster.gpus_for(self._options, self._device, nodes),
        )
        self._start_facts["threads"] = threads
        self._origin = Origin(self._ray)
        if self._options.cluster != NONE:
            self._start_facts["marker"] = str(self._closing.enter_context(_Marker()))
        cores = sum(each.get("CPU", 0) for each in nodes)
        is_local = self._options.cluster == NONE  # then the workers inherited their environment
        runtime = {} if is_local else {"env_vars": ray_cluster.environment(threads, local=False)}
        self._actor = self._ray.remote(RayWorker).options(
            num_cpus=max(_TINY_SHARE, min(1.0, int(1000 * cores / self._options.workers) / 1000)), num_gpus=gpus,
            max_restarts=0, max_task_retries=0, max_concurrency=8, scheduling_strategy="SPREAD",
            runtime_env=runtime,
        )  # fmt: skip

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
            worker.give(job.spec)
            on_message(job, {"kind": "started", "worker": worker.name})  # the worker computes while the run is opened
        return False

    def _handle(self, worker: _Worker, message: Message, requeued: deque[Job], on_message: OnMessage) -> None:
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
        if message["kind"] in FINAL:
            worker.job = None
        answer = on_message(job, message)
        if message["kind"] == REPORT:
            worker.give({"answer": answer})

    def _events(self) -> Iterator[tuple[_Worker, Message]]:
        """Wait up to a second for messages; yield them with their workers, a death among them as a message of kind died."""
        self.tick()
        by_answer = {worker.answer: worker for worker in self._workers}
        first, rest = self._ray.wait(list(by_answer), timeout=1.0)
        more = self._ray.wait(rest, num_returns=len(rest), timeout=0)[0] if first and rest else []
        for answer in [*first, *more]:
            worker = by_answer[answer]
            try:
                messages = json.loads(self._ray.get(answer))
            except self._ray.exceptions.RayError as error:
                yield from self._worker_ended(worker, error)
            else:
                worker.ask()
                yield from ((worker, each) for each in self._after_greeting(worker, messages))

    def _after_greeting(self, worker: _Worker, messages: list[Message]) -> Iterator[Message]:
        for message in messages:
            if message["kind"] == "refused" and not worker.ready:
                raise InputError(message["reason"])
            if message["kind"] == "ready":
                worker.ready, worker.name, self._failed_starts = True, message["worker"], 0
                self.greeting = self.greeting or message
            elif message["kind"] in ("broken", "refused"):  # refused behind its greeting: what it needs came damaged
                self._ray.kill(worker.actor)
                worker.name += f" ({message['reason']})"
            elif message["kind"] == "stopped":
                worker.stopped = True
            elif message["kind"] in (WANT, MADE):
                self._origin.answer(worker.actor, message)
            else:
                yield message

    def _worker_ended(self, worker: _Worker, error: Exception) -> Iterator[tuple[_Worker, Message]]:
        self._ray.kill(worker.actor)  # it may live on behind a broken network, and must not work beside its successor
        self._workers.remove(worker)
        reason = f"{_cause(error)} of {worker.name}"
        if "ModuleNotFoundError" in str(error):
            raise InputError("safemax is not installed on the cluster's machines; install the driver's version there")
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
        note(f"{failure}; continuing with workers = {self._size}")

    def _start(self) -> None:
        self._workers.append(_Worker(self._actor.remote(json.dumps(self._start_facts))))

    def _end(self) -> None:
        """Tell all workers to stop, give them time to write their checkpoints, and kill those that are still running."""
        for worker in self._workers:
            worker.actor.stop.remote()
        deadline = time.monotonic() + GRACE_SECONDS
        while any(each.job and not each.stopped for each in self._workers) and time.monotonic() < deadline:
            self._wait_for_stop()
        for worker in self._workers:
            self._ray.kill(worker.actor)
        self._workers.clear()
        self._closing.close()

    def _wait_for_stop(self) -> None:
        by_answer = {each.answer: each for each in self._workers if not each.stopped}
        for answer in self._ray.wait(list(by_answer), timeout=1.0)[0]:
            worker = by_answer[answer]
            try:
                messages = json.loads(self._ray.get(answer))
            except self._ray.exceptions.RayError:
                worker.stopped = True
            else:
                worker.ask()
                worker.stopped = any(each["kind"] == "stopped" for each in messages)


class _Marker:
    """A file in the driver's cache, which shows a worker that it sees the same folder."""

    def __init__(self) -> None:
        self.path = Path(cache.folder("clusters").absolute() / f"{socket.gethostname()}-{uuid.uuid4().hex}")

    def __enter__(self) -> Path:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.touch()
        return self.path

    def __exit__(self, *error: object) -> None:
        self.path.unlink(missing_ok=True)


def _cause(error: Exception) -> str:
    """Return how an actor ended, in words."""
    if "node has died" in str(error):
        return "the end of the machine"
    return "lack of memory, the end" if "running low on memory" in str(error) else "the end"
