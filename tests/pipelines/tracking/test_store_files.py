"""A store that is new is made once, and one that was moved is refused until its records were moved too."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from pipelines import ROOT, tracking
from pipelines.registry import model_versions
from safemax.errors import InputError
from tests.support import registered_versions

MAKES_THE_STORE = "from pipelines import tracking; print(tracking.setup('shared'))"


@pytest.mark.slow
def test_processes_that_start_at_once_in_a_fresh_folder_share_one_store(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW")} | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", MAKES_THE_STORE]
    started = [
        subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    outputs = [each.communicate() for each in started]
    assert [each.returncode for each in started] == [0, 0], outputs
    assert {stdout for stdout, _ in outputs} == {"1\n"}
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]


def test_a_process_that_was_killed_while_it_made_the_tables_holds_up_nobody(
    mlflow_store: MlflowClient, tmp_path: Path
) -> None:
    (tmp_path / "mlflow.db.lock").touch()
    assert tracking.store().search_experiments()
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]


@pytest.fixture
def moved(mlflow_store: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Move a store that holds a version, and return its new folder."""
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    shutil.move(tmp_path / "mlflow.db", before / "mlflow.db")
    _enter(before, monkeypatch)
    tracking.setup(registered_versions.NAME)
    registered_versions.register(tracking.store(), alias="champion")
    with tracking.run("job", experiment=registered_versions.NAME, params={}, tags={}) as run:
        run.json({}, "some")
    shutil.move(before, after)
    _enter(after, monkeypatch)
    return after


def _enter(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
    database = sqlite3.connect(folder / "mlflow.db")
    with database:  # registered_versions uses experiment 0, which the fixture placed elsewhere
        location = database.execute("SELECT artifact_location FROM experiments WHERE experiment_id = 0").fetchone()[0]
        if "before" not in location and "after" not in location:
            database.execute("UPDATE experiments SET artifact_location = ?", [str(folder / "mlruns" / "0")])
    database.close()


def test_a_version_of_a_moved_store_names_the_absent_folder_and_not_a_change(moved: Path) -> None:
    address = f"models:/{registered_versions.NAME}/1"
    with pytest.raises(InputError) as refusal:
        model_versions.resolve(address)
    assert str(refusal.value).startswith(
        f"model = {address} cannot be read: its files are recorded in {moved.parent}/before"
    )
    assert str(refusal.value).endswith("which is absent; docs/troubleshooting.md says how to move a store")


def test_a_moved_store_gets_no_run_and_its_old_folder_does_not_come_back(moved: Path) -> None:
    count = len(tracking.store().search_runs(["0", "1"]))
    with pytest.raises(InputError, match=f"the store was moved: .*{moved.parent}/before.* is absent.*{moved}/mlruns/1"):
        tracking.run("job", experiment=registered_versions.NAME, params={}, tags={}).__enter__()
    assert not (moved.parent / "before").exists()
    assert len(tracking.store().search_runs(["0", "1"])) == count


def test_what_the_docs_say_moves_a_store(moved: Path) -> None:
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    found = re.search(r"```python\n(# move_store\.py\n.*?)```", text, re.DOTALL)
    assert found
    (moved / "move_store.py").write_text(found[1])
    command = [sys.executable, "move_store.py", "mlflow.db", str(moved.parent / "before"), str(moved)]
    subprocess.run(command, cwd=moved, check=True)
    assert model_versions.evidence(f"models:/{registered_versions.NAME}@champion")["forgotten"] == ["a"]
    with tracking.run("job", experiment=registered_versions.NAME, params={}, tags={}) as run:
        run.json({"x": 1}, "some")
    assert mlflow.artifacts.load_dict(f"runs:/{run.id}/some.json") == {"x": 1}
    assert not (moved.parent / "before").exists()


def test_an_experiment_without_files_yet_is_no_moved_one(mlflow_store: MlflowClient, tmp_path: Path) -> None:
    assert tracking.setup("new") == tracking.setup("new")
    assert not (tmp_path / "mlruns").exists()
