"""The MLflow tracking store: a client of it, all pages of a search, and in one line why it cannot be used."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import mlflow
import requests
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.store.entities import PagedList
from sqlalchemy.exc import SQLAlchemyError

from pipelines.tracking.addresses import without_password
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
        return MlflowClient()
    except MlflowException as error:
        raise _unusable(error) from error


def setup(experiment: str) -> str:
    """Choose the store and the experiment, creating what is missing, and return the experiment's id.

    A run that `mlflow run` has opened (MLFLOW_RUN_ID) belongs to an experiment already, and `experiment` is ignored.

    Raises:
        InputError: the store or the experiment cannot be used.
    """
    client, joined = store(), os.environ.get("MLFLOW_RUN_ID")
    try:
        return client.get_run(joined).info.experiment_id if joined else mlflow.set_experiment(experiment).experiment_id
    except MlflowException as error:
        raise _unusable(error) from error


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
    return None


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, else its type; without passwords."""
    lines = str(error).strip().splitlines()
    return without_password(lines[0] if lines else type(error).__name__)


def _unusable(error: MlflowException) -> InputError:
    return InputError(f"tracking store {address()} cannot be used: {first_line(error)}")
