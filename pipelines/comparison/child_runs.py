"""The child runs of comparisons in MLflow: find them by digest, adopt them, read them into rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Run as StoredRun
from mlflow.exceptions import MlflowException

from pipelines import tracking
from pipelines.comparison.job import DIGEST, KIND
from pipelines.comparison.plan import BASE, GOLD
from safemax.reports.comparison_tables import UNSEEDED

_PAGE = 1000


def finished() -> dict[str, StoredRun]:
    """Return the newest finished child of each digest, from all experiments: `mlflow run` chooses the parent's."""
    client = tracking.store()
    experiments = [each.experiment_id for each in client.search_experiments()]
    runs: dict[str, StoredRun] = {}
    token: str | None = None
    while True:
        page = client.search_runs(
            experiments, f"tags.kind = '{KIND}' and attributes.status = 'FINISHED'",
            order_by=["attributes.start_time ASC"], max_results=_PAGE, page_token=token,
        )  # fmt: skip
        runs |= {each.data.tags[DIGEST]: each for each in page}
        token = page.token
        if not token:
            return runs


def adopt(parent: str, children: Iterable[StoredRun]) -> None:
    """Make children of unfinished comparisons children of this one; a finished comparison keeps its own."""
    client = tracking.store()
    status: dict[str, str] = {}
    for child in children:
        current = child.data.tags.get("mlflow.parentRunId", "")
        if current and current not in status:
            status[current] = _status(client, current)
        if status.get(current) != "FINISHED":
            client.set_tag(child.info.run_id, "mlflow.parentRunId", parent)


def end_orphan(parent: str, digest: str) -> None:
    """End the run of a worker that died with this child as KILLED: another worker resumes the child in a new run."""
    client = tracking.store()
    experiment_id = client.get_run(parent).info.experiment_id
    condition = (
        f"tags.`{DIGEST}` = '{digest}' and tags.mlflow.parentRunId = '{parent}' and attributes.status = 'RUNNING'"
    )
    for each in client.search_runs([experiment_id], condition):
        client.set_terminated(each.info.run_id, "KILLED")


def rows(plan: Sequence[Mapping[str, Any]], runs: Mapping[str, StoredRun], class_names: Sequence[str]) -> pd.DataFrame:
    """Return one row per finished child of a plan: variant, forget, seed, run, commit, and its metrics by key.

    The base gets one row per class, from what the first child of that class measured of it.

    Args:
        plan: jobs with their digests.
        runs: finished children by digest.
        class_names: of the data set, by label.
    """
    made: list[dict[str, Any]] = []
    classes: set[int] = set()  # whose base row is there
    for job in (each for each in plan if each["digest"] in runs):
        stored = runs[job["digest"]]
        commit = stored.data.tags.get("mlflow.source.git.commit", "")
        common = {"forget": class_names[job["forget"]], "run": stored.info.run_id, "commit": commit}
        label = job["variant"]["label"] if "variant" in job else GOLD
        made.append({"variant": label, "seed": job["seed"], **common, **_own(stored.data.metrics)})
        if job["kind"] == "child" and job["forget"] not in classes:
            classes.add(job["forget"])
            made.append({"variant": BASE, "seed": UNSEEDED, **common, **_of_base(stored.data.metrics)})
    return pd.DataFrame(made)


def _own(metrics: Mapping[str, float]) -> dict[str, float]:
    return {key: value for key, value in metrics.items() if not key.startswith(("base/", "loss/"))}


def _of_base(metrics: Mapping[str, float]) -> dict[str, float]:
    return {key.removeprefix("base/"): value for key, value in metrics.items() if key.startswith("base/")}


def _status(client: MlflowClient, run_id: str) -> str:
    try:
        return client.get_run(run_id).info.status
    except MlflowException:  # deleted for good
        return ""
