"""What tests share: MLflow stores of their own."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from sqlalchemy import Engine, event

from tests.support.little_code import save_model
from tests.support.store_files import place_artifacts

# Before torch loads: tiny models are fastest on one thread, and idle threads that spin starve whatever else runs.
for name, value in {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}.items():
    os.environ.setdefault(name, value)


@event.listens_for(Engine, "connect")
def _wait_for_no_disk(connection: Any, _: object) -> None:
    """Let no commit wait 10 to 30 ms for the disk: what is not synced is lost with the machine, and our kills end processes."""
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA synchronous = OFF")


@pytest.fixture
def little_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let versions carry little of our code, for tests that store many and run the code of none."""
    monkeypatch.setattr("mlflow.pyfunc.save_model", save_model())


@pytest.fixture(autouse=True)
def own_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no store that a test chose outlive it: MLflow prefers it to MLFLOW_TRACKING_URI, and it may be the checkout's."""
    monkeypatch.setattr("mlflow.tracking._tracking_service.utils._tracking_uri", None)


@pytest.fixture(scope="session")
def schema(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store's file with the tables and nothing in them; it is to be copied."""
    path = tmp_path_factory.mktemp("schema") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()  # creating the tables takes seconds, copying the file none
    return path


@pytest.fixture
def mlflow_store(schema: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    """An empty store (sqlite, artifacts beside it) in tmp_path, the working directory; child processes use it too."""
    return _enter(schema, tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def mlflow_module_store(schema: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowClient]:
    """The same, shared by the tests of a module."""
    with pytest.MonkeyPatch.context() as patch:
        yield _enter(schema, tmp_path_factory.mktemp("store"), patch)


def _enter(schema: Path, folder: Path, patch: pytest.MonkeyPatch) -> MlflowClient:
    shutil.copy(schema, folder / "mlflow.db")
    place_artifacts(folder)
    patch.chdir(folder)
    patch.delenv("MLFLOW_RUN_ID", raising=False)
    patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
    # mlflow.set_experiment writes both of these; what it wrote goes with the test.
    patch.setenv("MLFLOW_EXPERIMENT_ID", "0")
    patch.delenv("MLFLOW_EXPERIMENT_ID")
    patch.setattr("mlflow.tracking.fluent._active_experiment_id", None)
    return MlflowClient()
