"""What killed registrations leave: logged models without a version, and registered models without versions."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

from mlflow import MlflowClient
from mlflow.entities import LoggedModel
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from pipelines import tracking
from pipelines.registry import parts
from pipelines.registry.locks import lock
from pipelines.registry.model_versions import WEIGHTS


def remove_orphans(name: str) -> list[str]:
    """Remove what killed registrations left under a name, except those of running runs; return a line for each.

    That is: logged models of ours whose files no version of any registered model uses, nor needs for parts that it shares
    (deleted as in the UI; `mlflow gc` frees the disk), and the registered model itself if it has no version, description or tag.
    """
    client = tracking.store()
    with lock(name):
        removed = [
            f"logged model {model.model_id} of run {model.source_run_id}"
            for model in _unused(client, name)
            if _delete(client.delete_logged_model, model.model_id)
        ]
        versions = client.search_model_versions(f"name='{name}'", max_results=1)
        empty = [] if versions else client.search_registered_models(f"name='{name}'")
        # Somebody who gave it a description or a tag has plans for it.
        bare = any(not each.description and not each.tags for each in empty)
        if bare and _delete(client.delete_registered_model, name):
            removed.append(f"registered model {name}, which had no version")
    return removed


def _unused(client: MlflowClient, name: str) -> Iterator[LoggedModel]:
    """Yield our logged models of a name that no version uses and no running run is about to register."""
    experiments = [each.experiment_id for each in tracking.search_all(client.search_experiments)]
    logged = tracking.search_all(client.search_logged_models, experiments, f"name='{name}'", max_results=1000)
    ours = [each for each in logged if WEIGHTS in each.tags]
    versions = tracking.search_all(client.search_model_versions, "") if ours else []
    sources = [_sources(client, each) for each in versions]
    unused = [each for each in ours if not _is_used(each, sources) and not _is_running(each.source_run_id)]
    needed = set().union(*(parts.needed_by(each) for each in ours if each not in unused))
    yield from (each for each in unused if each.model_id not in needed)


def _is_used(model: LoggedModel, sources: Iterable[str]) -> bool:
    return any(model.model_id in source or _is_of_run(model, source) for source in sources)


def _sources(client: MlflowClient, version: ModelVersion) -> str:
    """Return the places that a version's files may be in: what it was made from, and where the store keeps them."""
    texts = [str(version.source), str(version.model_id)]
    if re.fullmatch(r"models:/[^/]+[/@].+", texts[0]):  # a copy of a version, which may be deleted by now
        texts.append(client.get_model_version_download_uri(version.name, str(version.version)))
    return "\n".join(texts)


def _is_of_run(model: LoggedModel, source: str) -> bool:
    """Return whether a source names the artifacts of the run that made a logged model: runs:/ID/NAME, or their path."""
    return bool(model.source_run_id) and str(model.source_run_id) in source


def _delete(delete: Callable[[str], object], which: str) -> bool:
    """Delete something and return whether that was permitted: on a team's server it may be somebody else's."""
    try:
        delete(which)
    except MlflowException as error:
        if error.error_code != "PERMISSION_DENIED":
            raise
        return False
    return True


def _is_running(run_id: str | None) -> bool:
    run = tracking.find_run(run_id) if run_id else None
    if run is None:
        return False
    return run.info.status == "RUNNING" and tracking.alive(tracking.process_of(run)) is not False
