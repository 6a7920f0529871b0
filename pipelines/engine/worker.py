"""The worker's side of a pool: load a context once from a configuration, then take jobs and send messages until there are no more.

A worker module ends in `main(load)`; pipelines.engine.worker_pool starts it with `python -m`. Messages are JSON objects, one
a line. The first one received is the configuration, all others are jobs. What is sent has a `kind`: `ready` or `refused`
once, then for each job any number of messages on the way and one of `done`, `pruned` and `failed`.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any, Protocol

import torch

from pipelines.engine.signals import StopSignal, die_with_parent, stop_on_signals
from safemax.errors import InputError, NonFiniteError, Stopped

REPORT = "report"  # the one kind of message that the coordinator answers
FINAL = ("done", "pruned", "failed")

Message = dict[str, Any]
Send = Callable[[Message], bool]
"""Sends a message on the way; its result is the coordinator's answer to a report: whether to prune the job."""


class Pruned(Exception):
    """The coordinator answered a report with yes: the job ends early, without a result."""


class WorkerContext(Protocol):
    """What a process loads once from a configuration, and does every job with."""

    @property
    def greeting(self) -> Message:
        """What the coordinator learns once the context is loaded."""

    def do(self, job: Message, send: Send) -> Message:
        """Do a job and return its result.

        Raises:
            Pruned: the coordinator ended the job early.
            Stopped: this process was told to stop; another one resumes the job.
        """


Load = Callable[[Message, StopSignal], WorkerContext]


@dataclass
class Channel:
    """Lines of JSON from and to the coordinator."""

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

    def send(self, message: Message) -> bool:
        """Send a message; return the coordinator's answer to a report, False for all others."""
        self.sink.write(json.dumps(message) + "\n")
        self.sink.flush()
        if message["kind"] != REPORT:
            return False
        answer = self.receive()
        if answer is None:
            raise Stopped("the coordinator has ended")
        return bool(answer["answer"])


def attempt(context: WorkerContext, job: Message, send: Send) -> Message:
    """Do a job and return its last message: done with the result, pruned, or failed with the reason.

    An error that concerns this job alone, out of memory included, must not end the other jobs; Stopped is raised on.
    """
    try:
        return {"kind": "done", **context.do(job, send)}
    except Pruned:
        return {"kind": "pruned"}
    except Stopped:
        raise
    except Exception as error:
        if not isinstance(error, InputError | NonFiniteError):  # the user's own mistake needs no traceback
            traceback.print_exc()
        return {"kind": "failed", "reason": f"{type(error).__name__}: {error}"}


def serve(load: Load, channel: Channel, stop: StopSignal) -> None:
    """Load the context from the first message, then do jobs until the coordinator closes its end."""
    config = channel.receive()
    if config is None:
        return
    try:
        with stop.interruptible():
            context = load(config, stop)
    except InputError as error:
        channel.send({"kind": "refused", "reason": str(error)})
        return
    channel.send({"kind": "ready", **context.greeting})
    while (job := channel.receive()) is not None:
        channel.send(attempt(context, job, channel.send))


def main(load: Load) -> None:
    """Serve the coordinator on stdin and stdout, with one thread; what libraries print goes to stderr."""
    stop = stop_on_signals()
    die_with_parent()
    torch.set_num_threads(1)
    channel = Channel.own()
    try:
        serve(load, channel, stop)
    except (Stopped, KeyboardInterrupt, BrokenPipeError):
        sys.stderr.flush()
        os._exit(143)  # nothing is left to write, and a broken stdout would complain
