"""The runs of a search in MLflow: a parent for the study, a child for each trial; children register nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.entities import Run as StoredRun
from mlflow.exceptions import MlflowException
from PIL import Image

from pipelines import tracking


class TrialFailed(Exception):
    """A trial failed; the message is its worker's."""


class TrialRuns:
    """The child runs of one parent run, by trial number.

    Args:
        parent: returns the id of the parent; another machine's run may become the parent on the way.
        experiment: its experiment.
        params: parameters that all children share, by dotted key.
        tags: tags that all children share.
    """

    def __init__(
        self, parent: Callable[[], str], experiment: str, params: Mapping[str, object], tags: Mapping[str, str]
    ) -> None:
        self._parent, self._experiment, self._params, self._tags = parent, experiment, dict(params), dict(tags)
        self._open: dict[int, tuple[ExitStack, tracking.Run]] = {}

    def __enter__(self) -> TrialRuns:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        """End open runs as the search ended: KILLED where it was told to stop, else FAILED."""
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

    def end(self, number: int, state: str, summary: str, picture: Path | None = None) -> None:
        """Close a trial's run as FINISHED, with its state in the study as a tag, and summary and picture as a note."""
        stack, run = self._open.pop(number)
        markdown = run.picture(Image.open(picture), "samples/trial") if picture and picture.exists() else ""
        run.note(f"{summary}\n\n{markdown}")
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
    """The status and the metrics that a run should have, where its process could not close it."""

    status: str
    metrics: Mapping[str, float]


def inherit(run: tracking.Run, earlier: str, children: Mapping[str, Ending | None]) -> None:
    """Make a study's earlier runs part of the run that continues it.

    Args:
        run: the one that continues the study.
        earlier: id of the study's run before; it is closed as KILLED if its status is RUNNING.
        children: ids of trials' runs, which become children of `run`. One whose status is RUNNING is closed with the given
            ending, or left alone (None) where its machine is alive.
    """
    client = tracking.store()
    run.tag("resumed_from", earlier)
    for each, ending in {earlier: Ending("KILLED", {}), **children}.items():
        stored = _existing(client, each)
        if stored and ending and stored.info.status == "RUNNING":
            now = int(time.time() * 1000)
            client.log_batch(each, metrics=[Metric(key, value, now, 0) for key, value in ending.metrics.items()])
            client.set_terminated(each, ending.status)
        if stored and each != earlier:
            client.set_tag(each, "mlflow.parentRunId", run.id)


def _existing(client: MlflowClient, run_id: str) -> StoredRun | None:
    """Return a run; None where it was deleted since."""
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return run if run.info.lifecycle_stage == "active" else None
