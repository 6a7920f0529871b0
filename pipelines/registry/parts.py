"""Parts of large models that versions share: held by one logged model of a name, named by digest in the others.

MLflow's own unit is the logged model, which outlives the versions made of it: whoever deletes or renames a version leaves its
files. So versions name logged models, not versions; each logged model of ours says in its tags which parts it holds and which
other ones it needs, and `orphans` spares what is needed. A version never needs a part of another registered model's name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import LoggedModel
from mlflow.exceptions import MlflowException

from pipelines import tracking
from pipelines.registry import served_model
from safemax.diffusion import changes
from safemax.diffusion.changes import Place
from safemax.errors import InputError

NEEDS = "parts.needed"  # tag of a logged model: the ids of the logged models that hold its other parts
_HOLDS = "part."  # begin of the tags that name the parts which it holds, by their digests
_FOLDER = "artifacts/pipeline"


def known(client: MlflowClient, name: str) -> dict[str, Place]:
    """Return where the parts of a registered model's name are held, by digest."""
    experiments = [each.experiment_id for each in tracking.search_all(client.search_experiments)]
    logged = tracking.search_all(client.search_logged_models, experiments, f"name='{name}'", max_results=1000)
    logged.sort(key=lambda each: -each.creation_timestamp)  # of several that hold a part, the oldest counts
    return {
        digest: Place(each.model_id, f"{_FOLDER}/{tag.removeprefix(_HOLDS)}")
        for each in logged if each.status == "READY"
        for tag, digest in each.tags.items() if tag.startswith(_HOLDS)
    }  # fmt: skip


def tags(held: Mapping[str, str], pipeline: Path) -> dict[str, str]:
    """Return the tags of a logged model: the parts that it holds, and the models that hold the others.

    Args:
        held: the digest of each part in its folder.
        pipeline: the folder, as `changes.thin` left it.
    """
    needed = changes.models_of(pipeline)
    return {_HOLDS + part: digest for part, digest in held.items()} | ({NEEDS: ",".join(needed)} if needed else {})


def needed_by(model: LoggedModel) -> set[str]:
    """Return the ids of the logged models that hold the other parts of one."""
    return set(filter(None, model.tags.get(NEEDS, "").split(",")))


def refuse_absent(client: MlflowClient, models: Iterable[str]) -> None:
    """Raise InputError where a logged model that holds a part is gone."""
    for each in models:
        try:
            client.get_logged_model(each)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise InputError(
                f"the logged model {each}, which holds parts of this one, was deleted in the meantime"
            ) from None


def complete(pipeline: Path) -> Path:
    """Make the folder of a verified copy whole; return it. InputError as of `changes.complete`, naming what is missing."""
    changes.complete(pipeline, served_model.fetch)
    return pipeline
