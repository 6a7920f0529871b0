"""A run from its opening to its end: created or joined, described, and closed with the status that it deserves."""

from __future__ import annotations

import getpass
import logging
import os
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.name_utils import _GENERATOR_NOUNS, _GENERATOR_PREDICATES

from pipelines.tracking import mlflow_store
from pipelines.tracking.addresses import without_password
from pipelines.tracking.liveness import PROCESS, end_launcher, this_process
from pipelines.tracking.mlflow_store import first_line, is_unreachable
from pipelines.tracking.pages import spaced
from pipelines.tracking.provenance import commit_tags, environment
from pipelines.tracking.runs import Run
from safemax.errors import InputError, Stopped
from safemax.reports.numbers import duration

_MOST_PARAMS = 12  # MLflow prints every parameter of a run beside each of its pictures, and in every comparison
_STOPPED = (Stopped, KeyboardInterrupt)
_LOG = logging.getLogger(__name__)


@contextmanager
def run(
    name: str,
    *,
    experiment: str,
    params: Mapping[str, object],
    tags: Mapping[str, str],
    shown: Collection[str] | None = None,
    description: str = "",
    parent: str | None = None,
    planned: float | None = None,
) -> Iterator[Run]:
    """Open a run, or join the one that `mlflow run` opened, and close it with the status that it deserves.

    It ends FINISHED, KILLED on safemax.errors.Stopped and Ctrl-C, or FAILED on any other exception; the exception is raised
    again.

    Args:
        name: the run's name in the UI, such as safemax-digits-forget0-seed0; a name that was given to `mlflow run` (--run-name)
            wins over it.
        experiment: its experiment, one per product model; see `setup`.
        params: by dotted key (`method.lambda`): `mlflow run` has logged the undotted ones already, as text. All of them go to
            environment.json, with the command, the hardware and the versions of libraries.
        tags: what users filter runs by.
        shown: keys of the parameters, at most a dozen, by which runs are compared: they become parameters of the run. None
            takes all.
        description: markdown, the run's note until `Run.note` replaces it.
        parent: id of the parent run; a child never joins the run of `mlflow run`.
        planned: minutes that a plan gave the work; when it is done, environment.json and stdout say how long it took.

    Raises:
        InputError: the store cannot be used, or stopped answering.
    """
    client, started = mlflow_store.store(), time.monotonic()
    experiment_id = client.get_run(parent).info.experiment_id if parent else mlflow_store.setup(experiment)
    described = {**commit_tags(), **tags, "mlflow.note.content": spaced(description)}
    joined = None if parent else os.environ.pop("MLFLOW_RUN_ID", None)
    run_id = joined or _create(client, experiment_id, name, described, parent)
    opened = Run(client, run_id, experiment_id)
    with _closing(client, opened, launched=joined is not None):
        entries = _params(params, params if shown is None else shown)
        if joined:
            _join(client, joined, name)
        client.log_batch(
            run_id, params=entries, tags=[RunTag(key, str(value)) for key, value in described.items()] if joined else ()
        )
        about = {"parameters": params, "environment": environment()}
        opened.json(about, "environment")
        yield opened
        opened.flush()
        if planned is not None:
            _compare_minutes(opened, planned, (time.monotonic() - started) / 60, about)


@contextmanager
def _closing(client: MlflowClient, opened: Run, *, launched: bool) -> Iterator[None]:
    """Close a run as what happens inside ends; a launcher of a run that was stopped is ended too."""
    try:
        yield
        client.set_terminated(opened.id, "FINISHED")
    except BaseException as error:
        _fail(client, opened, error)
        if launched and isinstance(error, _STOPPED):
            end_launcher()
        if is_unreachable(error):
            reason = f"does not answer; the same command resumes: {first_line(error)}"
            raise InputError(f"tracking store {mlflow_store.address()} {reason}") from error
        raise


def _create(client: MlflowClient, experiment_id: str, name: str, tags: Mapping[str, str], parent: str | None) -> str:
    """Open a run; in the same call it gets its tags, one of them the process by which `reap` knows whether it is dead."""
    origin = {PROCESS: this_process(), "mlflow.source.name": Path(sys.argv[0]).name, "mlflow.user": getpass.getuser()}
    if parent:
        origin["mlflow.parentRunId"] = parent
    return client.create_run(experiment_id, tags={**origin, **tags}, run_name=name).info.run_id


def _join(client: MlflowClient, run_id: str, name: str) -> None:
    """Make the run that `mlflow run` opened this process's: give it a name, unless a person did."""
    if not is_chosen(client.get_run(run_id).info.run_name):
        client.update_run(run_id, name=name)
    # A parameter, which is set once: of two processes that join a run, one fails.
    client.log_batch(run_id, params=[Param(PROCESS, this_process())])


def _params(params: Mapping[str, object], shown: Collection[str]) -> list[Param]:
    """Return the parameters that a run shows."""
    undotted = [key for key in params if "." not in key]
    if undotted:
        raise ValueError(f"parameters need dotted keys, as `mlflow run` logs the undotted ones: {undotted}")
    entries = [Param(key, str(params[key])) for key in shown if key in params]
    if len(entries) > _MOST_PARAMS:
        raise ValueError(f"a run shows at most {_MOST_PARAMS} parameters, not {len(entries)}")
    return entries


def _compare_minutes(opened: Run, planned: float, real: float, about: Mapping[str, Any]) -> None:
    with opened.tolerate_outage():
        opened.json({**about, "minutes": {"planned": planned, "real": real}}, "environment")
    print(f"planned {duration(planned)}, took {duration(real)}")


def _fail(client: MlflowClient, opened: Run, error: BaseException) -> None:
    status = "KILLED" if isinstance(error, _STOPPED) else "FAILED"
    try:
        client.set_terminated(opened.id, status)
        if status == "FAILED":
            opened.tag("failure", without_password(f"{type(error).__name__}: {error}"))
        opened.flush()
    except MlflowException as lost:
        _LOG.warning("run %s could not be closed as %s: %s", opened.id, status, first_line(lost))


def is_chosen(name: str) -> bool:
    """Return whether a person gave a run its name; MLflow makes up one such as brash-fox-17 where nobody did."""
    first, _, rest = name.partition("-")
    second, _, number = rest.partition("-")
    return not (first in _GENERATOR_PREDICATES and second in _GENERATOR_NOUNS and number.isdecimal())
