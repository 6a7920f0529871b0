"""The MLflow tracking store: a client of it, experiments, all pages of a search, and in one line why it cannot be used."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import mlflow
import pandas as pd
import requests
from mlflow import MlflowClient
from mlflow.entities import Experiment, LifecycleStage, Run
from mlflow.exceptions import MlflowException, RestException
from mlflow.store.entities import PagedList
from sqlalchemy.exc import SQLAlchemyError

from pipelines.tracking import store_files
from pipelines.tracking.addresses import without_password
from pipelines.tracking.liveness import process_of
from pipelines.tracking.pages import save_view
from safemax.errors import InputError, chain

Entity = TypeVar("Entity")


def store() -> MlflowClient:
    """Return a client of the store: MLFLOW_TRACKING_URI, else mlflow.db in the working directory."""
    # By default MLflow retries seven times: 246 s in which training stands still.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    if not mlflow.is_tracking_uri_set():
        mlflow.set_tracking_uri(f"sqlite:///{Path.cwd() / 'mlflow.db'}")
    try:
        return store_files.client(mlflow.get_tracking_uri())
    except (MlflowException, SQLAlchemyError) as error:
        raise _unusable(error) from error


def is_absent() -> bool:
    """Return whether the store is a SQLite file that is not there yet, which `store` would create."""
    uri = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else f"sqlite:///{Path.cwd() / 'mlflow.db'}"
    return store_files.is_absent(uri)


def setup(experiment: str) -> str:
    """Choose the store and the experiment, creating what is missing, and return the experiment's id.

    What the user chose comes first: the run that `mlflow run` opened (MLFLOW_RUN_ID), which belongs to an experiment
    already, then MLFLOW_EXPERIMENT_NAME, then MLFLOW_EXPERIMENT_ID.

    Raises:
        InputError: the store or the experiment cannot be used, or that run is not one that this process may write to.
    """
    client = store()
    try:
        if run_id := os.environ.get("MLFLOW_RUN_ID"):
            chosen = client.get_experiment(joinable(client, run_id).info.experiment_id)
        elif (given := os.environ.get("MLFLOW_EXPERIMENT_ID")) and not os.environ.get("MLFLOW_EXPERIMENT_NAME"):
            chosen = client.get_experiment(given)
        else:
            chosen = _experiment(client, os.environ.get("MLFLOW_EXPERIMENT_NAME") or experiment)
    except MlflowException as error:
        raise _unusable(error) from error
    if chosen.lifecycle_stage != LifecycleStage.ACTIVE:
        raise InputError(
            f"experiment {chosen.name} is deleted; restore it: mlflow experiments restore -x {chosen.experiment_id}"
        )
    store_files.refuse_moved(chosen)
    save_view(client, chosen)
    return str(chosen.experiment_id)


def joinable(client: MlflowClient, run_id: str) -> Run:
    """Return the run that MLFLOW_RUN_ID names.

    Raises:
        InputError: there is none, or it is not RUNNING, deleted, or that of another process, and would be overwritten.
    """
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        raise _not_joinable(run_id, "no such run") from error
    if run.info.lifecycle_stage != LifecycleStage.ACTIVE:
        raise _not_joinable(run_id, "the run is deleted")
    if run.info.status != "RUNNING":
        raise _not_joinable(run_id, f"the run is {run.info.status}")
    if process := process_of(run):
        raise _not_joinable(run_id, f"process {process} has joined the run")
    return run


def find_run(run_id: str) -> Run | None:
    """Return a run, also a deleted one; None where there is no such run, or it was deleted for good."""
    try:
        return store().get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def search_all(search: Callable[..., PagedList[Entity]], *args: Any, **options: Any) -> list[Entity]:
    """Return every result of a search, where MLflow returns one page: 100 registered models, 1,000 runs.

    Args:
        search: a method of MlflowClient that takes page_token, such as search_registered_models.
        args: what it is called with.
        options: the same by name; max_results is the size of a page.
    """
    page = search(*args, **options)
    results = list(page)
    while page.token:
        page = search(*args, **options, page_token=page.token)
        results += page
    return results


def stored_table(run_id: str, name: str) -> pd.DataFrame | None:
    """Return a table that a run logged (Run.table), None where it has none."""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            path = store().download_artifacts(run_id, f"{name}.json", scratch)
        except (MlflowException, OSError):
            return None
        return pd.read_json(path, orient="split", precise_float=True)


def metric_key(key: str) -> str:
    """Return a metric's key with - for each character that MLflow rejects; names of classes may hold such."""
    return re.sub(r"[^\w/. :-]", "-", key)


def address() -> str:
    """Return the store's address without its password."""
    return without_password(mlflow.get_tracking_uri())


def is_unreachable(error: BaseException | None) -> bool:
    """Return whether an exception comes from a server that does not answer."""
    return any(isinstance(each, requests.ConnectionError | requests.Timeout) for each in chain(error))


def refusal(error: Exception) -> str | None:
    """Return in one line why the tracking store cannot be used, None for an exception that has another cause."""
    if isinstance(error, MlflowException) and error.error_code in ("PERMISSION_DENIED", "UNAUTHENTICATED"):
        return f"tracking store {address()} denies access: {first_line(error)}"
    if is_unreachable(error):
        return f"tracking store {address()} does not answer: {first_line(error)}"
    if any(isinstance(each, SQLAlchemyError) for each in chain(error)):
        return f"a database cannot be used (tracking store {address()}): {first_line(error)}"
    if _server_failed(error):
        return f"tracking store {address()} failed; the same command resumes: {first_line(error)}"
    return None


def _server_failed(error: Exception) -> bool:
    """Return whether a server answered that it failed; a MlflowException from this process has the same status."""
    if not isinstance(error, MlflowException) or error.get_http_status_code() < 500:
        return False
    return isinstance(error, RestException) or error.message.startswith("API request to ")


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, else its type; without passwords."""
    lines = str(error).strip().splitlines()
    return without_password(lines[0] if lines else type(error).__name__)


def _experiment(client: MlflowClient, name: str) -> Experiment:
    """Return an experiment, created if it is missing; mlflow.set_experiment would also write MLFLOW_EXPERIMENT_ID."""
    known = client.get_experiment_by_name(name)
    if known is not None:
        return known
    try:
        return client.get_experiment(client.create_experiment(name))
    except MlflowException as error:
        made = client.get_experiment_by_name(name)  # by another process, meanwhile
        if error.error_code != "RESOURCE_ALREADY_EXISTS" or made is None:
            raise
        return made


def _not_joinable(run_id: str, why: str) -> InputError:
    return InputError(f"MLFLOW_RUN_ID = {run_id} cannot be joined: {why}; unset MLFLOW_RUN_ID to open a new run")


def _unusable(error: Exception) -> InputError:
    return InputError(f"tracking store {address()} cannot be used: {first_line(error)}")
