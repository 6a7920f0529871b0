"""The files of a store on this machine: a SQLite database, and the folders that it says hold the artifacts."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

import mlflow
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Experiment
from sqlalchemy import make_url

from safemax.errors import InputError

_REMEDY = "docs/troubleshooting.md says how to move a store"


def client(uri: str) -> MlflowClient:
    """Return a client of a store, and create the tables of a new SQLite database.

    Of two processes that create them at once, one would fail. So the file DATABASE.lock keeps the second one waiting; it is
    deleted when the tables are complete, and a killed process leaves it for the next one.
    """
    database = _database(uri)
    lock = Path(f"{database}.lock")
    if database is None or not database.parent.is_dir() or (database.exists() and not lock.exists()):
        return MlflowClient()
    with FileLock(lock, fallback_to_soft=False):
        opened = MlflowClient()
        opened.search_experiments(max_results=1)
        opened.search_registered_models(max_results=1)
        lock.unlink(missing_ok=True)
    return opened


def is_absent(uri: str) -> bool:
    """Return whether a store is a SQLite file that does not exist."""
    database = _database(uri)
    return database is not None and not database.exists()


def refuse_moved(experiment: Experiment) -> None:
    """Raise InputError where the database was moved with the artifacts, and records the folder where they were before.

    MLflow would make that folder again and write new runs there.
    """
    database, recorded = _database(mlflow.get_tracking_uri()), _local_path(str(experiment.artifact_location))
    if database is None or recorded is None or recorded.exists():
        return
    moved = database.parent / recorded.parent.name / recorded.name
    if moved.is_dir():
        raise InputError(
            f"the store was moved: experiment {experiment.name} records its files in {recorded}, which is absent, and they "
            f"are in {moved}; {_REMEDY}"
        )


def refuse_absent(what: str, location: str) -> None:
    """Raise InputError where the artifacts of something are recorded in a folder of this machine that is absent."""
    path = _local_path(location)
    if path is not None and not path.exists():
        raise InputError(f"{what} cannot be read: its files are recorded in {path}, which is absent; {_REMEDY}")


def _database(uri: str) -> Path | None:
    """Return the file of a SQLite store, None for any other store."""
    name = make_url(uri).database if uri.startswith("sqlite:") else None
    return Path(name).absolute() if name and name != ":memory:" else None


def _local_path(location: str) -> Path | None:
    """Return the path that an artifact location names, None where it is no path of this machine."""
    parts = urlsplit(location)
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    return None if parts.scheme else Path(location)
