"""The runs of a search in MLflow: a parent for the study, a child for each trial. Children register nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from PIL import Image

from pipelines import tracking


class TrialFailed(Exception):
    """A trial that ended without a result, in the words of its worker."""


class TrialRuns:
    """The children of one parent run.

    Args:
        parent: returns the id of the run that they belong to; another machine's run may become it on the way.
        experiment: its experiment.
        params: what all of them share, by dotted key.
        tags: likewise.
    """

    def __init__(
        self, parent: Callable[[], str], experiment: str, params: Mapping[str, object], tags: Mapping[str, str]
    ) -> None:
        self._parent, self._experiment, self._params, self._tags = parent, experiment, dict(params), dict(tags)
        self._open: dict[int, tuple[ExitStack, tracking.Run]] = {}

    def __enter__(self) -> TrialRuns:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        """End what is still open as the search ended: KILLED where it was told to stop, else FAILED."""
        for stack, _ in self._open.values():
            stack.__exit__(kind, error, trace)
        self._open.clear()

    def begin(self, number: int, params: Mapping[str, object], tags: Mapping[str, str]) -> str:
        """Open a trial's run and return its id."""
        stack = ExitStack()
        run = stack.enter_context(
            tracking.run(
                f"trial-{number:03d}", experiment=self._experiment, parent=self._parent(),
                params={**self._params, **params},
                tags={"kind": "trial", "search.trial": str(number), **self._tags, **tags},
            )
        )  # fmt: skip
        self._open[number] = stack, run
        return run.id

    def has(self, number: int) -> bool:
        """Return whether a trial's run is open."""
        return number in self._open

    def log(self, number: int, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics to a trial's run."""
        self._open[number][1].log(metrics, step)

    def tag(self, number: int, key: str, value: str) -> None:
        """Tag a trial's run."""
        self._open[number][1].tag(key, value)

    def end(self, number: int, state: str, said: str, picture: Path | None = None) -> None:
        """Close a trial's run as FINISHED; its state as the study has it is a tag, what is said of it and its picture a note."""
        stack, run = self._open.pop(number)
        shown = run.picture(Image.open(picture), "samples/trial") if picture and picture.exists() else ""
        run.note(f"{said}\n\n{shown}")
        run.tag("trial.state", state)
        stack.close()

    def fail(self, number: int, reason: str) -> None:
        """Close a trial's run as FAILED, with the reason."""
        stack, run = self._open.pop(number)
        run.tag("trial.state", "fail")
        error = TrialFailed(reason)
        stack.__exit__(TrialFailed, error, None)


@dataclass(frozen=True)
class Ending:
    """How a run that its process could not close should have been closed, and the metrics that it may lack."""

    status: str
    metrics: Mapping[str, float]


def inherit(run: tracking.Run, earlier: str, children: Mapping[str, Ending | None]) -> None:
    """Make a study's earlier runs part of the run that continues it.

    Args:
        run: the one that continues it.
        earlier: id of the study's run before; it was killed, where it seems to run.
        children: runs of trials, which become `run`'s, by id; one that seems to run is closed as told, or
            left alone (None) where its machine lives.
    """
    client = tracking.store()
    run.tag("resumed_from", earlier)
    for each, ending in {earlier: Ending("KILLED", {}), **children}.items():
        found = _found(client, each)
        if found and ending and found.info.status == "RUNNING":
            now = int(time.time() * 1000)
            client.log_batch(each, metrics=[Metric(key, value, now, 0) for key, value in ending.metrics.items()])
            client.set_terminated(each, ending.status)
        if found and each != earlier:
            client.set_tag(each, "mlflow.parentRunId", run.id)


def _found(client: MlflowClient, run_id: str) -> Any:
    """Return a run that nobody has deleted since."""
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return run if run.info.lifecycle_stage == "active" else None
