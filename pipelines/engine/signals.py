"""Signals: a pipeline stops between two steps on SIGTERM, and it does not outlive its launcher."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from safemax.errors import Stopped

LAUNCHER = "SAFEMAX_LAUNCHER"
"""Environment variable in which a launcher that owns its child passes its process id (in MLproject: bash's $PPID)."""

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class StopSignal:
    """A flag that SIGTERM raises; the caller reads it between two steps."""

    def __init__(self) -> None:
        self._raised = self._interrupts = False

    def __call__(self) -> bool:
        """Return whether the flag has been raised."""
        return self._raised

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Raise Stopped as soon as the signal arrives inside: for hours of sampling, which does not read the flag."""
        self._interrupts = True
        try:
            if self._raised:
                raise Stopped
            yield
        finally:
            self._interrupts = False

    def raise_on(self, signum: int, frame: FrameType | None) -> None:
        """Handle a signal: only set the flag (a lock, as in threading.Event, deadlocks on a second signal)."""
        self._raised = True
        if self._interrupts:
            self._interrupts = False
            raise Stopped


def stop_on_sigterm() -> StopSignal:
    """Return a flag that SIGTERM raises instead of ending the process; call it in the main thread."""
    flag = StopSignal()
    signal.signal(signal.SIGTERM, flag.raise_on)
    return flag


def is_follower_rank() -> bool:
    """Return whether torchrun started this process as a rank other than 0, which opens runs and registers versions."""
    return os.environ.get("RANK", "0") != "0"


def die_with_parent() -> None:
    """Request SIGTERM at the death of the launcher that LAUNCHER names, if any; Linux only, elsewhere a no-op.

    `mlflow run` forwards no signal to its child, which would continue to train as an orphan with its run left RUNNING. The
    kernel watches the launcher's thread, so a launcher must start its children from a thread that lives as long as they do.
    If the launcher died before this call, while torch was imported, the signal is sent at once: call stop_on_sigterm first,
    or it ends the process. The variable is removed, since it does not hold for the children of this process.
    """
    launcher = os.environ.pop(LAUNCHER, "")
    if not launcher or sys.platform != "linux":
        return
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl.argtypes = (ctypes.c_int, ctypes.c_ulong)
    prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if launcher != str(os.getppid()):
        os.kill(os.getpid(), signal.SIGTERM)
