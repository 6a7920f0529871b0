"""Runs that one process holds open for many jobs at once, and closes as each job ends."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import ExitStack
from typing import Any, Generic, Self, TypeVar

from pipelines.tracking.lifecycle import run
from pipelines.tracking.runs import Run

Key = TypeVar("Key", bound=object)


class JobFailed(Exception):
    """A job failed; the message is its worker's."""


class OpenRuns(Generic[Key]):
    """Open runs by job, inside `with`."""

    def __init__(self) -> None:
        self._open: dict[Key, tuple[ExitStack, Run]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        """End open runs as the work ended: KILLED where it was told to stop, else FAILED."""
        for stack, _ in self._open.values():
            stack.__exit__(kind, error, trace)
        self._open.clear()

    def begin(
        self,
        key: Key,
        name: str,
        *,
        experiment: str,
        parent: str,
        params: Mapping[str, object],
        tags: Mapping[str, str],
        shown: Collection[str] | None = None,
    ) -> Run:
        """Open a job's run; the arguments are those of `tracking.run`."""
        stack = ExitStack()
        opened = stack.enter_context(
            run(name, experiment=experiment, parent=parent, params=params, tags=tags, shown=shown)
        )
        self._open[key] = stack, opened
        return opened

    def __contains__(self, key: Key) -> bool:
        """Return whether a job's run is open."""
        return key in self._open

    def __getitem__(self, key: Key) -> Run:
        """Return a job's open run."""
        return self._open[key][1]

    def end(self, key: Key) -> None:
        """Close a job's run as FINISHED."""
        stack, _ = self._open.pop(key)
        stack.close()

    def fail(self, key: Key, reason: str) -> None:
        """Close a job's run as FAILED, with the reason."""
        stack, _ = self._open.pop(key)
        stack.__exit__(JobFailed, JobFailed(reason), None)
