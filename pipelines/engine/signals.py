"""Signals: a pipeline stops between two steps on SIGTERM, SIGHUP and Ctrl-C, and it does not outlive its launcher."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from safemax.errors import Stopped

LAUNCHER = "SAFEMAX_LAUNCHER"
"""Environment variable in which a launcher that owns its child passes its process id (in MLproject: bash's $PPID)."""

_STOPPING = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_AGAIN = b"\nstopping after this step, with a checkpoint; Ctrl-C again ends at once\n"


class StopSignal:
    """A flag that SIGTERM, SIGHUP and SIGINT raise; the caller reads it between two steps."""

    def __init__(self) -> None:
        self._raised = self._interrupts = False
        self._thread = 0  # that is inside `interruptible`

    def __call__(self) -> bool:
        """Return whether the flag has been raised."""
        return self._raised

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Raise Stopped as soon as a signal arrives inside: for hours of sampling, which does not read the flag."""
        self._interrupts, self._thread = True, threading.get_ident()
        try:
            if self._raised:
                raise Stopped
            yield
        finally:
            self._interrupts = False

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Only raise the flag inside, also within `interruptible`: for training, which reads it between two steps."""
        before, self._interrupts = self._interrupts, False
        try:
            yield
        finally:
            self._interrupts = before

    def request(self) -> None:
        """Raise the flag from another thread: a worker of a cluster gets no signal, but a call."""
        self._raised = True
        if self._interrupts:
            self._interrupts = False
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._thread), ctypes.py_object(Stopped))

    def raise_on(self, signum: int, frame: FrameType | None) -> None:
        """Handle a signal: only set the flag (a lock, as in threading.Event, deadlocks on a second signal).

        Raises:
            Stopped: inside `interruptible`.
            KeyboardInterrupt: on Ctrl-C where the flag had been raised before.
        """
        again, self._raised = self._raised, True
        _note(signum)
        if self._interrupts:
            self._interrupts = False
            raise Stopped
        if signum != signal.SIGINT:
            return
        if again:
            raise KeyboardInterrupt
        os.write(2, _AGAIN)


class _First:
    """The signal that arrived first: the process ends with its status, whatever follows it."""

    signum: int | None = None


def stop_on_signals() -> StopSignal:
    """Return a flag that SIGTERM, SIGHUP and Ctrl-C raise instead of ending the process; call it in the main thread."""
    flag = StopSignal()
    _handle(flag.raise_on)
    return flag


def end_on_signals() -> None:
    """Let SIGTERM and SIGHUP raise Stopped wherever the process is, so that its run ends KILLED; Ctrl-C does so by itself.

    For what takes seconds; `stop_on_signals` replaces it where there is a checkpoint to write.
    """
    _handle(_raise_at_once, (signal.SIGTERM, signal.SIGHUP))


def status_after(default: int) -> int:
    """Return the exit status of a process that was stopped: 128 and the signal that arrived first, else that of `default`."""
    return 128 + (_First.signum or default)


def _handle(handler: Callable[[int, FrameType | None], None], signals: Sequence[int] = _STOPPING) -> None:
    """Set a handler for signals, except for those that nohup or a shell's & made this process ignore."""
    for each in signals:
        if signal.getsignal(each) is not signal.SIG_IGN:
            signal.signal(each, handler)


def _raise_at_once(signum: int, frame: FrameType | None) -> None:
    _note(signum)
    raise Stopped


def _note(signum: int) -> None:
    _First.signum = _First.signum or signum


def is_follower_rank() -> bool:
    """Return whether torchrun started this process as a rank other than 0, which opens runs and registers versions."""
    return os.environ.get("RANK", "0") != "0"


def die_with_parent() -> None:
    """Request SIGTERM at the death of the launcher that LAUNCHER names, if any; Linux only, elsewhere a no-op.

    `mlflow run` forwards no signal to its child, which would continue to train as an orphan with its run left RUNNING. The
    kernel watches the launcher's thread, so a launcher must start its children from a thread that lives as long as they do.
    If the launcher died before this call, while torch was imported, the signal is sent at once: call stop_on_signals first,
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
