"""What killed registrations leave behind: logged models that no version names, and names without versions."""

from __future__ import annotations

from collections.abc import Callable

from mlflow import MlflowClient
from mlflow.entities import LoggedModel
from mlflow.exceptions import MlflowException

from pipelines import tracking
from pipelines.registry.model_versions import WEIGHTS, lock


def remove_orphans(name: str) -> list[str]:
    """Remove what killed registrations left under a name, sparing those of runs that live; return a line for each.

    That is: logged models of ours that no version names, under this name or as a copy (deleted as in the UI; `mlflow gc`
    frees the disk), and the registered name itself where it has no version.
    """
    client, gone = tracking.store(), []
    with lock(name):
        versions = client.search_model_versions(f"name='{name}'")
        used = {each.source for each in versions}
        everywhere = [each.experiment_id for each in client.search_experiments()]
        for model in client.search_logged_models(everywhere, filter_string=f"name='{name}'", max_results=1000):
            if f"models:/{model.model_id}" in used or WEIGHTS not in model.tags or _lives(client, model.source_run_id):
                continue
            if _copied(client, model, name):
                continue
            if _removed(client.delete_logged_model, model.model_id):
                gone.append(f"logged model {model.model_id} of run {model.source_run_id}")
        empty = [] if versions else client.search_registered_models(f"name='{name}'")
        bare = [each for each in empty if not each.description and not each.tags]  # others are somebody's, who waits
        if bare and _removed(client.delete_registered_model, name):
            gone.append(f"registered model {name}, which had no version")
    return gone


def _removed(delete: Callable[[str], object], what: str) -> bool:
    """Delete something and return whether it is gone: on a team's server it may be somebody else's."""
    try:
        delete(what)
    except MlflowException as error:
        if error.error_code != "PERMISSION_DENIED":
            raise
        return False
    return True


def _lives(client: MlflowClient, run_id: str | None) -> bool:
    try:
        run = client.get_run(run_id) if run_id else None
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        run = None  # deleted for good
    if run is None:
        return False
    return run.info.status == "RUNNING" and tracking.alive(run.data.params)


def _copied(client: MlflowClient, model: LoggedModel, name: str) -> bool:
    """Return whether a version under another name may hold the files of a logged model that this name has let go."""
    versions = client.search_model_versions(f"run_id='{model.source_run_id}'")
    return any(each.name != name and each.tags.get(WEIGHTS) == model.tags[WEIGHTS] for each in versions)
