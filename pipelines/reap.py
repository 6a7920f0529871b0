"""Clean up a store: end runs whose process died without ending them, and remove what killed registrations left.

A run is ended as FAILED if its process is known to be dead: it ran on this machine, since its last boot and in this PID
namespace. `mlflow run` opens a run before it starts our process; if none starts (no conda, a wrong path), the run is ended once
it is older than unclaimed_minutes. All other runs are left alone: those of living processes, those of other projects, and
those whose process cannot be seen from here (other machines and containers: run reap there too). The latter are listed;
dead_run ends one of them.
"""

from __future__ import annotations

if __name__ == "__main__":  # first: help and refusals need none of the imports below
    from pipelines.cli import console

    console.run("reap")

import getpass
import time
from collections.abc import Sequence
from dataclasses import dataclass

from mlflow import MlflowClient
from mlflow.entities import Run, ViewType

from pipelines import ROOT, tracking
from pipelines.cli.parameters import excerpt
from pipelines.cli.parser import parse
from pipelines.registry import model_versions, orphans
from safemax.errors import InputError
from safemax.knobs import check, knob


@dataclass(frozen=True)
class ReapOptions:
    """Which runs are ended."""

    unclaimed_minutes: float = knob(
        60.0, "age in minutes at which a run that no process has joined is ended", bounds=(1, 1e6)
    )
    dead_run: str = knob("", "id of a run whose process you know to be dead, although this machine cannot tell")
    dry_run: bool = knob(False, "show what would happen, change nothing")

    def __post_init__(self) -> None:
        check(self)


PARAMETERS: dict[str, type] = {"reap": ReapOptions}


def reap(argv: Sequence[str]) -> None:
    """Clean up the store by the command line's parameters."""
    chosen = parse("python -m pipelines.reap", __doc__ or "", PARAMETERS, argv)
    options = chosen["reap"]
    params = {"reap.unclaimed_minutes": options.unclaimed_minutes, "reap.dry_run": options.dry_run}
    with tracking.run("reap", experiment=tracking.ADMINISTRATION, params=params, tags={"kind": "reap"}) as run:
        run.parameters(chosen.record())
        lines = _end_dead(tracking.store(), options, own=run.id)
        if not options.dry_run:
            lines += [line for name in _names(tracking.store()) for line in orphans.remove_orphans(name)]
        lines = lines or ["nothing to clean up"]
        print("\n".join(lines))
        run.note("\n\n".join(lines))


def dead(run: Run, options: ReapOptions) -> str | None:
    """Return why a RUNNING run has no process any more, None if it has one or this machine cannot know."""
    process = tracking.process_of(run)
    if process is not None:
        if run.info.run_id == options.dead_run and not tracking.alive(process):
            return f"process {process} is dead, as dead_run={options.dead_run} states"
        return f"process {process} is dead" if tracking.alive(process) is False else None
    tags, minutes = run.data.tags, (time.time() - run.info.start_time / 1000) / 60
    # file://REPOSITORY#SUBFOLDER, if the project is in a git repository
    folder = tags.get("mlflow.source.name", "").removeprefix("file://").replace("#", "/")
    ours = folder == str(ROOT) and tags.get("mlflow.user") == getpass.getuser()
    if "mlflow.project.entryPoint" in tags and ours and minutes >= options.unclaimed_minutes:
        return f"`mlflow run` opened it {minutes:.0f} minutes ago and no process joined it"
    return None


def _end_dead(client: MlflowClient, options: ReapOptions, own: str) -> list[str]:
    experiments = [each.experiment_id for each in tracking.search_all(client.search_experiments, ViewType.ALL)]
    running = tracking.search_all(client.search_runs, experiments, "attributes.status = 'RUNNING'")
    others = [run for run in running if run.info.run_id != own]
    if options.dead_run and options.dead_run not in [run.info.run_id for run in others]:
        raise InputError(f"dead_run = {excerpt(options.dead_run)} is not the id of a RUNNING run")
    return [line for run in others if (line := _end(client, run, options))]


def _end(client: MlflowClient, run: Run, options: ReapOptions) -> str | None:
    """End a run if it is dead; return what was done, or that this machine cannot know, None for a living run."""
    name, process = f"run {run.info.run_id} ({run.info.run_name})", tracking.process_of(run)
    why = dead(run, options)
    if why is None:
        unknown = process is not None and tracking.alive(process) is None
        return f"{name} left alone: {process} may be alive; dead_run={run.info.run_id} ends it" if unknown else None
    # The status again: the process may have ended its run, and itself, since the search.
    if client.get_run(run.info.run_id).info.status != "RUNNING":
        return None
    if not options.dry_run:
        client.set_tag(run.info.run_id, "failure", f"reaped: {why}")  # first, as a run that has ended is left alone
        client.set_terminated(run.info.run_id, "FAILED")
    return f"{name}: {why}"


def _names(client: MlflowClient) -> list[str]:
    """Return the names of registered models that a killed registration of ours may have left something under."""
    experiments = [each.experiment_id for each in tracking.search_all(client.search_experiments)]
    models = tracking.search_all(client.search_logged_models, experiments, max_results=1000)
    logged = {each.name for each in models if model_versions.WEIGHTS in each.tags}
    return sorted(logged | {each.name for each in tracking.search_all(client.search_registered_models)})
