"""A worker's side: load a context once from a configuration, then do jobs with it, wherever the worker runs.

What a worker sends has a `kind`: any number of messages on the way, then one of `done`, `pruned` and `failed`. Messages, jobs
and configurations are JSON.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any, Protocol

from pipelines.engine.signals import StopSignal
from safemax.errors import InputError, NonFiniteError, Stopped, disk_failure

REPORT = "report"  # the one kind of message that is answered
FINAL = ("done", "pruned", "failed")

Message = dict[str, Any]
Send = Callable[[Message], bool]
"""Sends a message on the way; its result is the answer to a report: whether to prune the job."""


class Pruned(Exception):
    """A report was answered with yes: the job ends early, without a result."""


class WorkerContext(Protocol):
    """What a process loads once from a configuration, and does every job with."""

    @property
    def greeting(self) -> Message:
        """What the driver learns once the context is loaded."""

    def do(self, job: Message, send: Send) -> Message:
        """Do a job and return its result.

        Raises:
            Pruned: the driver ended the job early.
            Stopped: this process was told to stop; another one resumes the job.
        """


Load = Callable[[Message, StopSignal], WorkerContext]


def attempt(context: WorkerContext, job: Message, send: Send) -> Message:
    """Do a job and return its last message: done with the result, pruned, or failed with the reason.

    An error that concerns this job alone, out of memory included, must not end the other jobs.

    Raises:
        Stopped: this process was told to stop.
        OSError: or another error of a disk that is full or cannot be written, which says nothing of this job: every other job
            would fail by it too.
    """
    try:
        return {"kind": "done", **context.do(job, send)}
    except Pruned:
        return {"kind": "pruned"}
    except Stopped:
        raise
    except Exception as error:
        if disk_failure(error):
            raise
        if not isinstance(error, InputError | NonFiniteError):  # the user's own mistake needs no traceback
            traceback.print_exc()
        return {"kind": "failed", "reason": f"{type(error).__name__}: {error}"}
