"""A pipeline's manners as a process: it stops when it is told to, and it does not outlive its launcher."""

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
    """False until raised; the caller asks between two steps."""

    def __init__(self) -> None:
        self._raised = self._eager = False

    def __call__(self) -> bool:
        """Return whether the flag has been raised."""
        return self._raised

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Raise Stopped where the signal finds the work inside: for hours of sampling, which nothing asks to stop."""
        self._eager = True
        try:
            if self._raised:
                raise Stopped
            yield
        finally:
            self._eager = False

    def raise_on(self, signum: int, frame: FrameType | None) -> None:
        """Handle a signal: set the flag, nothing else (a lock, as in threading.Event, deadlocks on a second signal)."""
        self._raised = True
        if self._eager:
            self._eager = False
            raise Stopped


def stop_on_sigterm() -> StopSignal:
    """Return a flag that SIGTERM raises, instead of ending the process where it stands; for the main thread."""
    flag = StopSignal()
    signal.signal(signal.SIGTERM, flag.raise_on)
    return flag


def is_follower_rank() -> bool:
    """Return whether torchrun started this process to train along with the one that opens runs and registers versions."""
    return os.environ.get("RANK", "0") != "0"


def die_with_parent() -> None:
    """Ask for SIGTERM at the death of the launcher, if one is named in LAUNCHER; Linux only, elsewhere a no-op.

    `mlflow run` forwards no signal to its child, which would train on as an orphan of a run left RUNNING. The kernel
    watches the launcher's thread, so a launcher must start its children from a thread that lives as long as they do.
    A launcher that died before this call, while torch was imported, counts too: call stop_on_sigterm first, or that
    signal ends the process on the spot. The variable is removed: it is true for this process, not for its children.
    """
    launcher = os.environ.pop(LAUNCHER, "")
    if not launcher or sys.platform != "linux":
        return
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl.argtypes = (ctypes.c_int, ctypes.c_ulong)
    prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if launcher != str(os.getppid()):
        os.kill(os.getpid(), signal.SIGTERM)
