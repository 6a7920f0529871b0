"""The runs of a search in MLflow: a parent for the study, a child for each trial; children register nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Metric, Run, RunTag
from PIL import Image

from pipelines import tracking

STATE = "trial.state"  # tag of a trial's run: complete, pruned or fail
_SHOWN = 12  # parameters that a run shows


class TrialRuns(tracking.OpenRuns[int]):
    """The child runs of one parent run, by trial number.

    Args:
        parent: returns the id of the parent; another machine's run may become the parent on the way.
        experiment: its experiment.
        params: parameters that all children share, by dotted key; the run of a child shows only its own.
        tags: tags that all children share.
    """

    def __init__(
        self, parent: Callable[[], str], experiment: str, params: Mapping[str, object], tags: Mapping[str, str]
    ) -> None:
        super().__init__()
        self._parent, self._experiment, self._params, self._tags = parent, experiment, dict(params), dict(tags)

    def start(self, number: int, params: Mapping[str, object], tags: Mapping[str, str]) -> str:
        """Open a trial's run and return its id."""
        own = {"kind": "trial", "search.trial": str(number), **self._tags, **tags}
        return self.begin(
            number, f"trial-{number:03d}", experiment=self._experiment, parent=self._parent(),
            params={**self._params, **params}, tags=own, shown=list(params)[:_SHOWN],
        ).id  # fmt: skip

    def log(self, number: int, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics to a trial's run."""
        self[number].log(metrics, step)

    def tag(self, number: int, key: str, value: str) -> None:
        """Tag a trial's run."""
        self[number].tag(key, value)

    def finish(self, number: int, state: str, summary: str, picture: Path | None = None) -> None:
        """Close a trial's run as FINISHED, with its state in the study as a tag, and summary and picture as a note."""
        run, markdown = self[number], ""
        if picture and picture.exists():
            run.chart_picture(Image.open(picture), "samples/trial")
            markdown = run.picture(Image.open(picture), "samples/trial")
        run.note(f"{summary}\n\n{markdown}")
        run.tag(STATE, state)
        self.end(number)

    def fail(self, number: int, reason: str) -> None:
        """Close a trial's run as FAILED, with the reason."""
        self.tag(number, STATE, "fail")
        super().fail(number, reason)


@dataclass(frozen=True)
class Ending:
    """The status, metrics and tags that a run should have, where its process could not close it."""

    status: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


def inherit(run: tracking.Run, earlier: str, children: Mapping[str, Ending | None]) -> None:
    """Make a study's earlier runs part of the run that continues it.

    Args:
        run: the one that continues the study.
        earlier: id of the study's run before; it is closed as KILLED if its status is RUNNING.
        children: ids of trials' runs, which become children of `run`. One whose status is RUNNING, or that failed behind the
            result of its trial, is closed with the given ending; None leaves it alone, as its machine is alive.
    """
    client = tracking.store()
    run.resumes(earlier)
    for each, ending in {earlier: Ending("KILLED"), **children}.items():
        stored = tracking.find_run(each)
        if stored and stored.info.lifecycle_stage != "active":  # deleted since
            continue
        if stored and ending and _is_open(stored, ending):
            _close(client, stored, ending)
        if stored and each != earlier:
            client.set_tag(each, "mlflow.parentRunId", run.id)


def _is_open(stored: Run, ending: Ending) -> bool:
    """Return whether a run still needs its ending; one that ended in another way says why, unless its trial has a result."""
    return stored.info.status == "RUNNING" or (ending.status == "FINISHED" != stored.info.status)


def _close(client: MlflowClient, stored: Run, ending: Ending) -> None:
    """Give a run the ending that it should have; where its trial has a result, the reason of a failure behind that goes."""
    run_id, now = stored.info.run_id, int(time.time() * 1000)
    metrics = [Metric(key, value, now, 0) for key, value in ending.metrics.items()]
    client.log_batch(run_id, metrics=metrics, tags=[RunTag(*tag) for tag in ending.tags.items()])
    if "failure" in stored.data.tags and ending.status == "FINISHED":
        client.delete_tag(run_id, "failure")
    client.set_terminated(run_id, ending.status)
