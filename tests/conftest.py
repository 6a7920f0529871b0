"""What tests share: MLflow stores of their own."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.support.store_files import place_artifacts

# Before torch loads: tiny models are fastest on one thread, and idle threads that spin starve whatever else runs.
for name, value in {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}.items():
    os.environ.setdefault(name, value)


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
