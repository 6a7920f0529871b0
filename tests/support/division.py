"""A worker's context that divides: what tests of the engine run where no model is needed."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from pipelines.engine.signals import StopSignal
from pipelines.engine.worker import Message, Pruned, Send
from safemax.errors import InputError, Stopped


@dataclass(frozen=True)
class Number:
    """What a division starts from."""

    number: float


@dataclass
class Division:
    """Divides its configuration's number by a job's; a job may ask for more."""

    number: float
    stop: StopSignal

    @property
    def greeting(self) -> Message:
        return {"number": self.number}

    def do(self, job: Message, send: Send) -> Message:
        """Do a job.

        Args:
            job: by; perhaps report, print (a text), seconds (of sleep), until (a file exists), touch (a file), kill (this
                process), kill_unless (a file exists), where (say it).
            send: sends a log, and the report.
        """
        quotient = self.number / job["by"]
        if "report" in job and send({"kind": "report", "quotient": quotient}):
            raise Pruned
        send({"kind": "log", "quotient": quotient})
        if "print" in job:
            print(job["print"], file=sys.stderr)
        if "kill" in job or ("kill_unless" in job and not Path(job["kill_unless"]).exists()):
            Path(job.get("kill_unless", os.devnull)).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if "touch" in job:
            Path(job["touch"]).touch()
        deadline = time.monotonic() + job.get("seconds", 0)
        while time.monotonic() < deadline and not Path(job.get("until", "/nowhere")).exists():
            if self.stop():
                raise Stopped
            time.sleep(0.05)
        where = {"pid": os.getpid(), "threads": os.environ.get("OMP_NUM_THREADS")} if "where" in job else {}
        return {"quotient": quotient, **where}


def load(config: Message, stop: StopSignal) -> Division:
    """Return a worker's context."""
    if config["number"] < 0:
        raise InputError("number = -1 is not allowed; 0 or more")
    return Division(config["number"], stop)
