"""Tidy a store: end runs whose process died without ending them, and remove what killed registrations left.

A run is ended as FAILED if this machine opened it and its process is gone. `mlflow run` opens a run before any process of
ours; where none came (no conda, a wrong path), the run is ended once it is older than unclaimed_minutes. Everything else is
spared: living processes, other machines' runs (reap there too), other projects' runs.
"""

from __future__ import annotations

import getpass
import time
from collections.abc import Sequence
from dataclasses import dataclass

from mlflow import MlflowClient
from mlflow.entities import Run, ViewType

from pipelines import ROOT, tracking
from pipelines.cli.parser import main, parse
from pipelines.registry import model_versions, orphans
from safemax.knobs import check, knob


@dataclass(frozen=True)
class ReapOptions:
    """What may be ended."""

    unclaimed_minutes: float = knob(60.0, "age at which a run that no process took over is ended", bounds=(1, 1e6))
    dry_run: bool = knob(False, "say what would be done, do nothing")

    def __post_init__(self) -> None:
        check(self)


PARAMETERS: dict[str, type] = {"reap": ReapOptions}


def reap(argv: Sequence[str]) -> None:
    """Tidy the store by the command line's parameters."""
    asked = parse("python -m pipelines.reap", __doc__ or "", PARAMETERS, argv)["reap"]
    params = {"reap.unclaimed_minutes": asked.unclaimed_minutes, "reap.dry_run": asked.dry_run}
    with tracking.run("reap", experiment=tracking.ADMINISTRATION, params=params, tags={"kind": "reap"}) as run:
        lines = _end_dead(tracking.store(), asked)
        if not asked.dry_run:
            lines += [line for name in _names(tracking.store()) for line in orphans.remove_orphans(name)]
        print("\n".join(lines or ["nothing to tidy"]))
        run.note("\n\n".join(lines or ["nothing to tidy"]))


def dead(run: Run, unclaimed_minutes: float) -> str | None:
    """Return why a run that is RUNNING has no process any more, None where it has one or nobody here can know."""
    if "env.process" in run.data.params:
        return None if tracking.alive(run.data.params) else f"process {run.data.params['env.process']} is gone"
    tags, minutes = run.data.tags, (time.time() - run.info.start_time / 1000) / 60
    place = (
        tags.get("mlflow.source.name", "").removeprefix("file://").replace("#", "/")
    )  # of a git repository, with a subfolder
    ours = place == str(ROOT) and tags.get("mlflow.user") == getpass.getuser()
    if "mlflow.project.entryPoint" in tags and ours and minutes >= unclaimed_minutes:
        return f"`mlflow run` opened it {minutes:.0f} minutes ago and no process took it over"
    return None


def _end_dead(client: MlflowClient, asked: ReapOptions) -> list[str]:
    lines = []
    for run in _running(client):
        why = dead(run, asked.unclaimed_minutes)
        # ComparisonOptions again: the process may have ended its run, and itself, since the search.
        if why is None or client.get_run(run.info.run_id).info.status != "RUNNING":
            continue
        lines.append(f"run {run.info.run_id} ({run.info.run_name}): {why}")
        if not asked.dry_run:
            client.set_terminated(run.info.run_id, "FAILED")
            client.set_tag(run.info.run_id, "failure", f"reaped: {why}")
    return lines


def _running(client: MlflowClient) -> list[Run]:
    experiments = [each.experiment_id for each in client.search_experiments(ViewType.ALL)]
    found = client.search_runs(experiments, "attributes.status = 'RUNNING'", max_results=1000)
    runs = list(found)
    while found.token:
        found = client.search_runs(
            experiments, "attributes.status = 'RUNNING'", max_results=1000, page_token=found.token
        )
        runs += found
    return runs


def _names(client: MlflowClient) -> list[str]:
    """Return the names that a killed registration of ours may have touched."""
    experiments = [each.experiment_id for each in client.search_experiments()]
    models = client.search_logged_models(experiments, max_results=1000)
    logged = {each.name for each in models if model_versions.WEIGHTS in each.tags}
    return sorted(logged | {each.name for each in client.search_registered_models()})


if __name__ == "__main__":
    main(reap)
