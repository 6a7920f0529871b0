"""Points of failure: every write to the store and to the disk, counted, and one of them made to fail.

A point is a call of MLflow's stores that writes, an upload of an artifact, or one of the steps in which a file appears or
disappears under its name (fsync, replace, rename, unlink). Nothing of ours is replaced: the calls below it fail.
"""

from __future__ import annotations

import errno
import os
import signal
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import requests
from mlflow.exceptions import RestException
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore as RegistryStore
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore as TrackingStore

_WRITES = ("create_", "update_", "rename_", "delete_", "log_", "set_", "finalize_", "copy_", "record_", "restore_")
_FILES = ((os, "fsync"), (Path, "replace"), (Path, "rename"), (Path, "unlink"))


class Failure(StrEnum):
    """How a point fails."""

    REFUSED = "error of the store"
    UNREACHABLE = "no connection"
    FULL = "disk full"
    KILLED_BEFORE = "killed just before"
    KILLED_AFTER = "killed just after"


@dataclass
class Points:
    """The points that this process has passed.

    Args:
        fatal: the point that fails: its number, counted from 0, or its name, which is that of the first one of it; None where
            none does.
        failure: how it fails.
    """

    fatal: int | str | None = None
    failure: Failure = Failure.KILLED_BEFORE
    passed: list[str] = field(default_factory=list)
    inside: bool = False

    def install(self) -> None:
        """Count every point of this process from now on; for a process that ends soon, as nothing takes this back."""
        for store in (TrackingStore, RegistryStore):
            for name in dir(store):
                if name.startswith(_WRITES) and callable(getattr(store, name)):
                    self._wrap(store, name, f"{store.__module__.split('.')[2]}.{name}")
        for name in ("log_artifact", "log_artifacts"):
            self._wrap(LocalArtifactRepository, name, f"artifacts.{name}")
        for owner, name in _FILES:
            self._wrap(owner, name, f"file.{name}")

    def _wrap(self, owner: Any, name: str, label: str) -> None:
        real = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            if self.inside or _is_scratch(args):  # a call of the store within a call of the store is no further point
                return real(*args, **kwargs)
            self.passed.append(label)
            is_fatal = self.fatal in (len(self.passed) - 1, label)
            self.inside = True
            try:
                return self._fail(lambda: real(*args, **kwargs), label, args) if is_fatal else real(*args, **kwargs)
            finally:
                self.inside = False

        setattr(owner, name, call)

    def _fail(self, real: Callable[[], Any], label: str, args: tuple[Any, ...]) -> Any:
        if self.failure in (Failure.KILLED_BEFORE, Failure.KILLED_AFTER):
            try:
                if self.failure == Failure.KILLED_AFTER:
                    real()
            finally:  # also after a call that was answered with an error, such as that a model exists
                os.kill(os.getpid(), signal.SIGKILL)
        if label == "artifacts.log_artifacts":
            _upload_half(*args)
        raise _error(self.failure, label)


def _error(failure: Failure, label: str) -> Exception:
    if failure == Failure.FULL or label.startswith("file."):
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if failure == Failure.UNREACHABLE:
        return requests.ConnectionError(f"{label}: connection refused")
    return RestException({"error_code": "INTERNAL_ERROR", "message": f"{label} failed"})


def _upload_half(repository: LocalArtifactRepository, folder: str, *_: Any) -> None:
    """Upload one file of a folder, as a process does whose disk is full."""
    (first, *_rest) = sorted(path for path in Path(folder).iterdir() if path.is_file())
    target = Path(repository.artifact_dir)
    target.mkdir(parents=True, exist_ok=True)
    (target / first.name).write_bytes(first.read_bytes())


def _is_scratch(args: tuple[Any, ...]) -> bool:
    """Return whether a path is in the temporary folder of the operation, which outlives no process."""
    return bool(args) and isinstance(args[0], Path) and Path(tempfile.gettempdir()) in args[0].parents
