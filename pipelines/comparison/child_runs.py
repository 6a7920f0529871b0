"""The child runs of comparisons in MLflow: open them, find them by digest, adopt them, read them into rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
from mlflow.entities import Run as StoredRun

from pipelines import tracking
from pipelines.comparison.job import ChildConfig
from pipelines.comparison.plan import BASE, GOLD, Comparison
from safemax import metric_keys as keys
from safemax.reports.comparison_tables import UNSEEDED

KIND, DIGEST = "comparison.child", "comparison.digest"  # tags


class ChildRuns(tracking.OpenRuns[str]):
    """The open runs of a comparison's gold models and children, by digest.

    Args:
        comparison: what is compared.
        config: what its jobs share.
        parent: id of its run.
    """

    def __init__(self, comparison: Comparison, config: ChildConfig, parent: str) -> None:
        super().__init__()
        self._comparison, self._config, self._parent = comparison, config, parent

    def start(self, job: Mapping[str, Any]) -> str:
        """Open a job's run and return its id."""
        opened = self._start_gold(job) if job["kind"] == GOLD else self._start_child(job)
        return opened.id

    def _start_gold(self, job: Mapping[str, Any]) -> tracking.Run:
        comparison, class_name = self._comparison, self._class_name(job)
        steps = comparison.options.gold_steps
        params = {"gold.steps": steps, "data.name": comparison.dataset.name, "data.forget": class_name}
        params |= {f"eval.{key}": value for key, value in comparison.evaluation.describe().items()}
        name = f"gold-{comparison.dataset.name}-forget{class_name}"
        tags = {"comparison.variant": GOLD, "unlearning.method": "retrain"}
        return self._begin(job, name, params, tags, ("gold.steps", "data.forget", "eval.protocol"))

    def _start_child(self, job: Mapping[str, Any]) -> tracking.Run:
        comparison, label = self._comparison, job["variant"]["label"]
        correction = self._config.correction(comparison.dataset, job)
        name = f"{label}-{comparison.dataset.name}-forget{self._class_name(job)}-seed{job['seed']}"
        tags = {"comparison.variant": label, "unlearning.method": correction.method_name}
        opened = self._begin(job, name, correction.params(), tags, correction.shown_params)
        opened.dataset(comparison.dataset, "training")
        return opened

    def _begin(
        self,
        job: Mapping[str, Any],
        name: str,
        params: Mapping[str, object],
        tags: Mapping[str, str],
        shown: Sequence[str],
    ) -> tracking.Run:
        shared = {"kind": KIND, DIGEST: job["digest"], "comparison.seed": str(job["seed"])}
        return self.begin(
            job["digest"], name, experiment=self._comparison.name, parent=self._parent, params=params, shown=shown,
            tags={**shared, "unlearning.forget": self._class_name(job), **tags},
        )  # fmt: skip

    def _class_name(self, job: Mapping[str, Any]) -> str:
        return self._comparison.dataset.class_names[job["forget"]]


def finished() -> dict[str, StoredRun]:
    """Return the newest finished child of each digest, from all experiments: `mlflow run` chooses the parent's."""
    client = tracking.store()
    experiments = [each.experiment_id for each in tracking.search_all(client.search_experiments)]
    condition = f"tags.kind = '{KIND}' and attributes.status = 'FINISHED'"
    runs = tracking.search_all(client.search_runs, experiments, condition, order_by=["attributes.start_time ASC"])
    return {each.data.tags[DIGEST]: each for each in runs if DIGEST in each.data.tags}


def adopt(parent: str, children: Iterable[StoredRun]) -> None:
    """Make children of unfinished comparisons children of this one; a finished comparison keeps its own."""
    client = tracking.store()
    status: dict[str, str | None] = {"": None}
    for child in children:
        current = child.data.tags.get("mlflow.parentRunId", "")
        if current not in status:
            parent_run = tracking.find_run(current)
            status[current] = parent_run.info.status if parent_run else None
        if status[current] != "FINISHED":
            client.set_tag(child.info.run_id, "mlflow.parentRunId", parent)


def end_orphans(experiment: str) -> None:
    """End as KILLED the comparisons and children of an experiment whose process was killed: the same command resumes."""
    client = tracking.store()
    found = client.get_experiment_by_name(experiment)
    for kind in (KIND, "comparison"):
        condition = f"tags.kind = '{kind}' and attributes.status = 'RUNNING'"
        for each in tracking.search_all(client.search_runs, [found.experiment_id], condition) if found else ():
            if tracking.alive(tracking.process_of(each)) is False:
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
        own, of_base = _metrics(stored)
        made.append({"variant": label, "seed": job["seed"], **common, **own})
        if job["kind"] == "child" and job["forget"] not in classes:
            classes.add(job["forget"])
            made.append({"variant": BASE, "seed": UNSEEDED, **common, **of_base})
    return pd.DataFrame(made)


def _metrics(run: StoredRun) -> tuple[dict[str, float], dict[str, float]]:
    """Return the metrics of a child, and those that it measured of the base: what its run shows, and its metrics.json.

    Runs of versions up to 0.1 show all of them; those of the base begin with base/.
    """
    shown = {key: value for key, value in run.data.metrics.items() if not key.startswith(keys.LOSS)}
    of_base = {key.removeprefix(keys.BASE): value for key, value in shown.items() if key.startswith(keys.BASE)}
    own = {key: value for key, value in shown.items() if not key.startswith(keys.BASE)}
    table = None if of_base else tracking.stored_table(run.info.run_id, "metrics")
    if table is None:
        return own, of_base
    table = table.set_index("metric")
    column = "gold" if "gold" in table else "corrected"
    return {**table[column].to_dict(), **own}, table["base"].dropna().to_dict() if "base" in table else {}
