"""Whether the process that opened a run is alive, and the end of an `mlflow run` that would overwrite a run's status."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import psutil

PROCESS = "env.process"  # the param of a run that holds `this_process`


def this_process() -> str:
    """Return HOST/PID/START (seconds since 1970), which no other process shares."""
    return f"{socket.gethostname()}/{os.getpid()}/{int(psutil.Process().create_time())}"


def alive(params: Mapping[str, str]) -> bool:
    """Return whether the process that opened a run is alive, by the run's params; True where this machine cannot know."""
    host, pid, started = params.get(PROCESS, "?/0/0").split("/")
    if host != socket.gethostname():
        return True
    try:
        return abs(psutil.Process(int(pid)).create_time() - int(started)) <= 2  # the clock may have been set since
    except psutil.NoSuchProcess:
        return False


def end_launcher() -> None:
    """Terminate the `mlflow run` above this process, which would overwrite KILLED with FAILED when its child ends.

    (MLflow checks whether the run has ended by comparing the status's name with numbers.) A Python program that called
    mlflow.projects.run is spared, and its run ends FAILED.
    """
    with contextlib.suppress(psutil.Error):
        for above in psutil.Process().parents()[:2]:  # bash may be in between
            if ("mlflow", "run") in pairwise(Path(word).name for word in above.cmdline()):
                above.terminate()
