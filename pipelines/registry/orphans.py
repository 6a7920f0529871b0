"""What killed registrations leave: logged models without a version, and registered models without versions."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator

from mlflow import MlflowClient
from mlflow.entities import LoggedModel
from mlflow.exceptions import MlflowException

from pipelines import tracking
from pipelines.registry.locks import lock
from pipelines.registry.model_versions import WEIGHTS


def remove_orphans(name: str) -> list[str]:
    """Remove what killed registrations left under a name, except those of running runs; return a line for each.

    That is: logged models of ours that no version uses, under this name or as a copy (deleted as in the UI; `mlflow gc`
    frees the disk), and the registered model itself if it has no version, description or tag.
    """
    client = tracking.store()
    with lock(name):
        versions = tracking.search_all(client.search_model_versions, f"name='{name}'")
        removed = [
            f"logged model {model.model_id} of run {model.source_run_id}"
            for model in _unused(client, name, [each.source for each in versions])
            if _delete(client.delete_logged_model, model.model_id)
        ]
        empty = [] if versions else client.search_registered_models(f"name='{name}'")
        # Somebody who gave it a description or a tag has plans for it.
        bare = any(not each.description and not each.tags for each in empty)
        if bare and _delete(client.delete_registered_model, name):
            removed.append(f"registered model {name}, which had no version")
    return removed


def _unused(client: MlflowClient, name: str, sources: Container[str | None]) -> Iterator[LoggedModel]:
    """Yield our logged models of a name that no version uses and no running run is about to register."""
    experiments = [each.experiment_id for each in tracking.search_all(client.search_experiments)]
    for model in tracking.search_all(client.search_logged_models, experiments, f"name='{name}'", max_results=1000):
        if f"models:/{model.model_id}" in sources or WEIGHTS not in model.tags:
            continue
        if not _is_running(client, model.source_run_id) and not _is_copied(client, model, name):
            yield model


def _delete(delete: Callable[[str], object], which: str) -> bool:
    """Delete something and return whether that was permitted: on a team's server it may be somebody else's."""
    try:
        delete(which)
    except MlflowException as error:
        if error.error_code != "PERMISSION_DENIED":
            raise
        return False
    return True


def _is_running(client: MlflowClient, run_id: str | None) -> bool:
    try:
        run = client.get_run(run_id) if run_id else None
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        run = None  # permanently deleted
    if run is None:
        return False
    return run.info.status == "RUNNING" and tracking.alive(run.data.params.get(tracking.PROCESS)) is not False


def _is_copied(client: MlflowClient, model: LoggedModel, name: str) -> bool:
    """Return whether a version of another registered model may use the files of a logged model."""
    versions = tracking.search_all(client.search_model_versions, f"run_id='{model.source_run_id}'")
    return any(each.name != name and each.tags.get(WEIGHTS) == model.tags[WEIGHTS] for each in versions)
