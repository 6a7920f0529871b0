"""Whether the process that opened a run is alive, and the end of an `mlflow run` that would overwrite a run's status."""

from __future__ import annotations

import contextlib
import os
import socket
from itertools import pairwise
from pathlib import Path

import psutil
from mlflow.entities import Run

PROCESS = "env.process"  # the tag of a run, or where `mlflow run` opened it, the parameter, that holds `this_process`
_PROC = Path("/proc")
_START_TICKS = 19  # index of starttime in /proc/PID/stat after the name in parentheses (proc_pid_stat(5), field 22)


def this_process() -> str:
    """Return HOST/PID/BOOT/NAMESPACE/TICKS: who runs, and what no other process of any machine shares.

    BOOT is the kernel's id of this boot, NAMESPACE the inode of the PID namespace, TICKS the start in clock ticks after the
    boot, which no change of the clock moves. Without /proc it is HOST/PID, from which nobody can tell whether it is alive.
    """
    name = f"{socket.gethostname()}/{os.getpid()}"
    space, ticks = _pid_space(), _start_ticks(os.getpid())
    return name if space is None or ticks is None else f"{name}/{space}/{ticks}"


def process_of(run: Run) -> str | None:
    """Return the process that works, or worked, on a run; None where none has joined it."""
    recorded: str | None = run.data.params.get(PROCESS, run.data.tags.get(PROCESS))
    return recorded


def alive(process: str | None) -> bool | None:
    """Return whether a process is alive, None where this process cannot know.

    That is: the process runs, or ran, on another machine, before a reboot, or in another PID namespace, such as a container
    whose host has the same name; there is no /proc; or it was recorded as HOST/PID/START by versions up to 0.1, whose start
    moves with the clock.

    Args:
        process: what `this_process` returned, perhaps elsewhere; None or other text gives None.
    """
    match (process or "").split("/"):
        case [_, pid, boot, namespace, ticks] if (
            f"{boot}/{namespace}" == _pid_space() and pid.isdecimal() and ticks.isdecimal()
        ):
            return _is_running(int(pid), ticks)
    return None


def end_launcher() -> None:
    """Terminate the `mlflow run` above this process, which would overwrite KILLED with FAILED when its child ends.

    (MLflow checks whether the run has ended by comparing the status's name with numbers.) A Python program that called
    mlflow.projects.run is spared, and its run ends FAILED.
    """
    with contextlib.suppress(psutil.Error):
        for above in psutil.Process().parents()[:2]:  # bash may be in between
            if ("mlflow", "run") in pairwise(Path(word).name for word in above.cmdline()):
                above.terminate()


def _pid_space() -> str | None:
    """Return BOOT/NAMESPACE, within which a process id and its start name one process; None without a /proc of our own."""
    try:
        if (_PROC / "self").readlink().name != str(os.getpid()):  # /proc of another namespace
            return None
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{(_PROC / 'self/ns/pid').readlink().name.strip('pid:[]')}"
    except OSError:
        return None


def _is_running(pid: int, ticks: str) -> bool | None:
    """Return whether the process of this namespace that has an id started at these ticks."""
    try:
        os.kill(pid, 0)  # /proc may hide other users' processes (hidepid); this call does not
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    now = _start_ticks(pid)
    return None if now is None else now == ticks


def _start_ticks(pid: int) -> str | None:
    try:
        return (_PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()[_START_TICKS]
    except (OSError, IndexError):
        return None
