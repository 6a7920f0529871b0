"""The files of a test's own MLflow store."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path


def place_artifacts(folder: Path) -> None:
    """Let the experiment that comes with a folder's store keep its artifacts there, not where the store's file was made."""
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as database, database:
        place = str(folder / "mlruns" / "0")
        database.execute("UPDATE experiments SET artifact_location = ? WHERE experiment_id = 0", [place])
