"""Files that any version uses are spared, whatever the version says about itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipelines.registry import model_versions, orphans

NAME = "tiny-ddpm"


def logged(client: MlflowClient) -> tuple[str, str, str]:
    """Return a logged model of ours without a version, its folder, and its run."""
    run_id = client.create_run("0").info.run_id
    client.set_terminated(run_id, "KILLED")
    model = client.create_logged_model("0", NAME, run_id, tags={model_versions.WEIGHTS: "w"})
    return model.model_id, str(model.artifact_location), run_id


@pytest.mark.parametrize("source", ["models:/{id}", "{path}", "file://{path}", "{path}/artifacts", "runs:/{run}/model"])
@pytest.mark.parametrize("name", [NAME, "by-hand"])
def test_a_logged_model_that_any_version_was_made_from_is_spared(
    mlflow_store: MlflowClient, source: str, name: str
) -> None:
    model_id, path, run_id = logged(mlflow_store)
    Path(path).mkdir(parents=True)
    mlflow_store.create_registered_model(name)
    mlflow_store.create_model_version(name, source.format(id=model_id, path=path, run=run_id))
    unused, _, _ = logged(mlflow_store)
    removed = orphans.remove_orphans(NAME)
    assert [line for line in removed if line.startswith("logged model")] == [
        f"logged model {unused} of run {line.rpartition(' ')[2]}" for line in removed[:1]
    ]
    assert [each.model_id for each in mlflow_store.search_logged_models(["0"])] == [model_id]


@pytest.mark.parametrize("change", ["rename", "copy and delete", "copy, delete and lose tags"])
def test_a_logged_model_of_a_version_that_was_renamed_or_copied_is_spared(
    mlflow_store: MlflowClient, change: str
) -> None:
    model_id, _, run_id = logged(mlflow_store)
    mlflow_store.create_registered_model(NAME)
    mlflow_store.create_model_version(NAME, f"models:/{model_id}", run_id, tags={model_versions.WEIGHTS: "w"})
    if change == "rename":
        mlflow_store.rename_registered_model(NAME, "renamed")
    else:
        mlflow_store.copy_model_version(f"models:/{NAME}/1", "copied")
        mlflow_store.delete_registered_model(NAME)
    if change.endswith("tags"):
        mlflow_store.delete_model_version_tag("copied", "1", model_versions.WEIGHTS)
    assert orphans.remove_orphans(NAME) == []
    assert [each.model_id for each in mlflow_store.search_logged_models(["0"])] == [model_id]
