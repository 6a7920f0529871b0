"""When a run's checkpoints are written, and by whom: by the run itself on a CPU, by a thread of their own on a GPU."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch

from safemax.storage import checkpoint
from safemax.storage.checkpoint import Checkpoint

# Devices that compute while a copy of the state is written, and the seconds between two of their checkpoints.
BACKGROUND = {"cuda"}
SECONDS = 60.0


class Saver:
    """Writes checkpoints, one at a time.

    Args:
        folder: of the run's checkpoints; None writes none.
        device: of the run.
        every: steps between checkpoints on a CPU; 0 writes none on the way, on a GPU either.
    """

    def __init__(self, folder: Path | None, device: torch.device, every: int) -> None:
        self.folder, self._every = folder, every if folder else 0
        self._last = time.monotonic()
        self._thread = ThreadPoolExecutor(1) if device.type in BACKGROUND else None
        self._writing: Future[Path] | None = None

    def is_due(self, done: int) -> bool:
        """Whether a checkpoint is to be written after so many steps."""
        if self._thread is None or not self._every:
            return bool(self._every) and done % self._every == 0
        return time.monotonic() - self._last >= SECONDS

    def write(self, state: Checkpoint, *, wait: bool) -> None:
        """Write a checkpoint, or let the thread write a copy of it once the one before is written.

        Args:
            state: of the run.
            wait: return when it is written.

        Raises:
            OSError: this checkpoint, or on a GPU the one before, could not be written.
        """
        if self.folder is None:
            return
        if self._thread is None:
            checkpoint.write(self.folder, state)
            return
        self._wait()
        copy = {name: tensor.detach().to("cpu", copy=True) for name, tensor in state.tensors.items()}
        self._writing = self._thread.submit(checkpoint.write, self.folder, replace(state, tensors=copy))
        self._last = time.monotonic()
        if wait:
            self._wait()

    def _wait(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def close(self) -> None:
        """End the thread when it has written what it has to write, however the run ended."""
        if self._thread is not None:
            self._thread.shutdown()
