"""Clean up a store: end runs whose process died without ending them, and remove what killed registrations left.

A run is ended as FAILED if this machine opened it and its process is dead. `mlflow run` opens a run before it starts our
process; if none starts (no conda, a wrong path), the run is ended once it is older than unclaimed_minutes. All other runs are
left alone: those of living processes, of other machines (reap there too) and of other projects.
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
    """Which runs are ended."""

    unclaimed_minutes: float = knob(60.0, "age at which a run that no process has joined is ended", bounds=(1, 1e6))
    dry_run: bool = knob(False, "show what would happen, change nothing")

    def __post_init__(self) -> None:
        check(self)


PARAMETERS: dict[str, type] = {"reap": ReapOptions}


def reap(argv: Sequence[str]) -> None:
    """Clean up the store by the command line's parameters."""
    options = parse("python -m pipelines.reap", __doc__ or "", PARAMETERS, argv)["reap"]
    params = {"reap.unclaimed_minutes": options.unclaimed_minutes, "reap.dry_run": options.dry_run}
    with tracking.run("reap", experiment=tracking.ADMINISTRATION, params=params, tags={"kind": "reap"}) as run:
        lines = _end_dead(tracking.store(), options)
        if not options.dry_run:
            lines += [line for name in _names(tracking.store()) for line in orphans.remove_orphans(name)]
        lines = lines or ["nothing to clean up"]
        print("\n".join(lines))
        run.note("\n\n".join(lines))


def dead(run: Run, unclaimed_minutes: float) -> str | None:
    """Return why a RUNNING run has no process any more, None if it has one or this machine cannot know."""
    if tracking.PROCESS in run.data.params:
        return None if tracking.alive(run.data.params) else f"process {run.data.params[tracking.PROCESS]} is dead"
    tags, minutes = run.data.tags, (time.time() - run.info.start_time / 1000) / 60
    # file://REPOSITORY#SUBFOLDER, if the project is in a git repository
    folder = tags.get("mlflow.source.name", "").removeprefix("file://").replace("#", "/")
    ours = folder == str(ROOT) and tags.get("mlflow.user") == getpass.getuser()
    if "mlflow.project.entryPoint" in tags and ours and minutes >= unclaimed_minutes:
        return f"`mlflow run` opened it {minutes:.0f} minutes ago and no process joined it"
    return None


def _end_dead(client: MlflowClient, options: ReapOptions) -> list[str]:
    lines = []
    experiments = [each.experiment_id for each in tracking.search_all(client.search_experiments, ViewType.ALL)]
    for run in tracking.search_all(client.search_runs, experiments, "attributes.status = 'RUNNING'"):
        why = dead(run, options.unclaimed_minutes)
        # The status again: the process may have ended its run, and itself, since the search.
        if why is None or client.get_run(run.info.run_id).info.status != "RUNNING":
            continue
        lines.append(f"run {run.info.run_id} ({run.info.run_name}): {why}")
        if not options.dry_run:
            client.set_terminated(run.info.run_id, "FAILED")
            client.set_tag(run.info.run_id, "failure", f"reaped: {why}")
    return lines


def _names(client: MlflowClient) -> list[str]:
    """Return the names of registered models that a killed registration of ours may have left something under."""
    experiments = [each.experiment_id for each in tracking.search_all(client.search_experiments)]
    models = tracking.search_all(client.search_logged_models, experiments, max_results=1000)
    logged = {each.name for each in models if model_versions.WEIGHTS in each.tags}
    return sorted(logged | {each.name for each in tracking.search_all(client.search_registered_models)})


if __name__ == "__main__":
    main(reap)
