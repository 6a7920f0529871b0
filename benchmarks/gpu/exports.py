"""What the product's runs leave in MLflow, brought into a stage's folder."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from shutil import copyfile

import pandas as pd
from mlflow.entities import Run

from pipelines import tracking
from safemax.errors import InputError


def newest_run(kind: str) -> Run:
    """Return the newest finished run of a kind (the tag that pipelines give theirs); InputError where there is none."""
    client = tracking.store()
    everywhere = [each.experiment_id for each in client.search_experiments()]
    wanted = f"tags.kind = '{kind}' and attributes.status = 'FINISHED'"
    found = client.search_runs(everywhere, wanted, order_by=["attributes.start_time DESC"], max_results=1)
    if not found:
        raise InputError(f"no run of kind {kind} has finished")
    return found[0]


def pictures(run: Run, folder: Path) -> None:
    """Copy a run's pictures (PNG) into a folder."""
    _copy(run, "pictures", folder, ".png")


def file(run: Run, path: str, target: Path) -> None:
    """Copy one artifact of a run to a file."""
    with tempfile.TemporaryDirectory() as scratch:
        copyfile(tracking.store().download_artifacts(run.info.run_id, path, scratch), target)


def table(run: Run, name: str) -> pd.DataFrame:
    """Return a table that the run logged as NAME.json."""
    with tempfile.TemporaryDirectory() as scratch:
        found = json.loads(
            Path(tracking.store().download_artifacts(run.info.run_id, f"{name}.json", scratch)).read_text()
        )
    return pd.DataFrame(found["data"], columns=found["columns"])


def _copy(run: Run, path: str, folder: Path, ending: str) -> None:
    client = tracking.store()
    for each in client.list_artifacts(run.info.run_id, path):
        if each.is_dir:
            _copy(run, each.path, folder, ending)
        elif each.path.endswith(ending):
            target = folder / Path(each.path).relative_to("pictures")
            target.parent.mkdir(parents=True, exist_ok=True)
            file(run, each.path, target)
