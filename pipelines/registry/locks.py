"""A lock per registered model, for a check and a change that no other process may come between."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
from filelock import FileLock


@contextmanager
def lock(name: str) -> Iterator[None]:
    """Hold a registered model for a check and a change, among the processes of this user on this machine.

    MLflow has no compare-and-swap, so other machines are not kept out. The kernel releases the lock when a process dies.
    The file in the temporary folder is deleted while the lock is still held, and a process that waits for the deleted
    file starts again with a new one; only a killed process leaves a file, at most one per store and model.
    """
    path = lock_file(name)
    with FileLock(path, mode=0o600, fallback_to_soft=False):
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def lock_file(name: str) -> Path:
    """Return the file of a registered model's lock in the store that is used now."""
    key = hashlib.sha256(f"{mlflow.get_tracking_uri()} {name}".encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"safemax-{os.getuid()}-{key}.lock"
