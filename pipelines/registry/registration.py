"""Registration: a version is complete or absent, made once a run, and verified before it appears."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput, Metric
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model

import safemax
from pipelines import tracking
from pipelines.registry import copies, lineage, model_versions, parts, served_model
from pipelines.registry.locks import lock
from pipelines.registry.model_versions import MANIFEST, WEIGHTS, version_of
from safemax import metric_keys as keys
from safemax.diffusion import changes, image_request
from safemax.diffusion.changes import Place
from safemax.diffusion.model import Diffusion
from safemax.errors import InputError
from safemax.storage import manifest

# The metrics that become tags of a version. The registry's pages list every tag of every version, so there are few.
TAGGED = (
    *(keys.UA, keys.RECOGNISED, keys.RECOGNISED + keys.HIGH, keys.ACCURACY, keys.FID_INCEPTION),
    *(keys.FID_JUDGE, keys.RUNTIME_MINUTES, keys.PEAK_MEMORY_GB),
)
_PARAM_LENGTH = 500  # characters of a parameter that every store takes
SHAPE = "image_size"  # tag of a version: channels, height and width
_SERVING_NEEDS = (
    *("accelerate", "diffusers", "huggingface_hub", "mlflow", "numpy", "pandas", "pillow", "safetensors", "scipy"),
    *("torch", "tqdm"),
)


def register(
    diffusion: Diffusion,
    name: str,
    *,
    run_id: str,
    evidence: Mapping[str, Any],
    tags: Mapping[str, str],
    description: str,
    alias: str | None,
) -> str:
    """Make a model a version of a registered model, with its evidence, and return the version's number.

    The files are uploaded first, read back and verified, and the metrics are logged to the run and the logged model; then
    the version appears, with all its tags; the alias is set last. A kill before the version appears leaves a logged model
    without a version, and at most a registered model without versions: nothing that loads, and `orphans.remove_orphans`
    removes both. Called again for the same weights by the same run, or by one that goes on with its job, it returns the
    existing version.

    Args:
        diffusion: the model.
        name: the registered model, such as digits-ddpm; created if it is missing.
        run_id: the run that made the model.
        evidence: JSON; `forgotten` lists the names of all classes forgotten so far, `metrics` (optional) maps keys to
            numbers, `parameters` (optional) dotted keys to values, `data_digest` (optional) names the data. Parameters and
            metrics also become those of the logged model, for the UI's tab `Models`; the classes and the metrics of TAGGED
            become tags, which is all that the registry's pages show.
        tags: further tags.
        description: markdown for the version's page.
        alias: moved to the version unless it points to a newer one.
    """
    client, weights = tracking.store(), diffusion.digest()
    version = _existing(client, name, run_id, weights)
    if version is None:
        metrics = {key: f"{value:.6g}" for key, value in evidence.get("metrics", {}).items() if key in TAGGED}
        shape = {SHAPE: shape_of(diffusion), "architecture": diffusion.architecture}
        facts = {**metrics, **shape, "forgotten": ",".join(evidence["forgotten"]), **tags, WEIGHTS: weights}
        model_id, facts[MANIFEST] = _upload(client, diffusion, name, run_id, evidence, weights)
        with lock(name):
            checked = lineage.with_parent_checked(facts, evidence.get("parent_digest"))
            version = _existing(client, name, run_id, weights) or _create(
                client, name, run_id, model_id, checked, description
            )
    elif version.run_id != run_id:  # of an earlier run of the job, killed before it ended
        _log_metrics(client, run_id, None, evidence)
    _link(client, version)
    if alias is not None:
        _set_alias(client, name, alias, str(version.version))
    return str(version.version)


def refuse_other_shape(name: str, diffusion: Diffusion) -> None:
    """Raise InputError where the base of a registered model has images of another shape: corrections would change subject."""
    address = model_versions.find(name, "base")
    shape = _stated_shape(address) if address else None
    if shape not in (None, shape_of(diffusion)):
        raise InputError(
            f"name = {name} is not allowed: its base {address} has images of {shape}, this one of {shape_of(diffusion)}; "
            f"name={name}-{diffusion.image_shape[-1]} makes a model of its own"
        )


def refuse_other_subject(address: str, name: str) -> None:
    """Raise InputError where a copy of a version would join versions whose images have another shape.

    Args:
        address: of the version, models:/NAME/VERSION.
        name: the registered model that the copy goes to; there may be none of that name.
    """
    versions = tracking.search_all(tracking.store().search_model_versions, f"name='{name}'")
    shape = _stated_shape(address)
    for each in versions[:1]:
        held = _stated_shape(f"models:/{name}/{each.version}")
        if None not in (shape, held) and shape != held:
            raise InputError(
                f"to = {name} is not allowed: its version {each.version} has images of {held}, {address} of {shape}"
            )


def _stated_shape(address: str) -> str | None:
    """Return the shape of a version's images by its tag, or where an import lost it, by its files; None if none is whole."""
    with contextlib.suppress(InputError):
        tags = model_versions.version_of(address).tags
        return tags.get(SHAPE) or shape_of(Diffusion.load(model_versions.resolve(address)))
    return None


def shape_of(diffusion: Diffusion) -> str:
    """Return the shape of a model's images, such as 1x28x28."""
    return "x".join(map(str, diffusion.image_shape))


def copy(address: str, name: str) -> str:
    """Copy a version to another registered model, with its files and tags; return the copy's number.

    Called again, it returns the existing copy. The source may be deleted later: the copy keeps the files.
    """
    source, client = version_of(address), tracking.store()
    with lock(name):
        versions = tracking.search_all(client.search_model_versions, f"name='{name}'")
        same = [str(each.version) for each in versions if each.tags.get(MANIFEST) == source.tags.get(MANIFEST)]
        if same:
            return same[0]
        with contextlib.redirect_stderr(io.StringIO()):  # MLflow announces the copy, and which of its methods makes it
            return str(client.copy_model_version(f"models:/{source.name}/{source.version}", name).version)


def _existing(client: MlflowClient, name: str, run_id: str, weights: str) -> ModelVersion | None:
    """Return the version that a run, or one whose job it goes on with, made of these weights; None if there is none."""
    versions = tracking.search_all(client.search_model_versions, f"name='{name}' and tags.`{WEIGHTS}` = '{weights}'")
    if not versions:
        return None
    makers = set(_job(run_id))
    return next((each for each in versions if each.run_id in makers), None)


def _job(run_id: str) -> Iterator[str]:
    """Yield the runs of a job, the last one first: each resumed what the next one had left."""
    seen: set[str] = set()
    earlier: str | None = run_id
    while earlier and earlier not in seen:
        yield earlier
        seen.add(earlier)
        run = tracking.find_run(earlier)
        earlier = run.data.tags.get(tracking.RESUMED_FROM) if run else None


def _upload(
    client: MlflowClient, diffusion: Diffusion, name: str, run_id: str, evidence: Mapping[str, Any], weights: str
) -> tuple[str, str]:
    experiment_id = client.get_run(run_id).info.experiment_id
    params = {key: str(value)[:_PARAM_LENGTH] for key, value in evidence.get("parameters", {}).items()}
    model = client.create_logged_model(experiment_id, name, run_id, {WEIGHTS: weights}, params, "diffusion")
    about = Model(
        artifact_path=model.artifact_location, run_id=run_id, model_uuid=model.model_id, model_id=model.model_id
    )
    with tempfile.TemporaryDirectory() as scratch:
        known = parts.known(client, name)
        digest, shared = _build(diffusion, evidence, about, Path(scratch), known)
        client.log_model_artifacts(model.model_id, f"{scratch}/version")
        client.set_logged_model_tags(model.model_id, shared)
    client.finalize_logged_model(model.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    with tempfile.TemporaryDirectory() as scratch:
        parts.complete(copies.download(f"models:/{model.model_id}", Path(scratch), digest) / copies.PIPELINE)
    _log_metrics(client, run_id, model.model_id, evidence)
    return model.model_id, digest


def _log_metrics(client: MlflowClient, run_id: str, model_id: str | None, evidence: Mapping[str, Any]) -> None:
    """Log the metrics that a run shows, to the run and, if given, its logged model in one call, with the data they are of.

    Once, and nothing with steps: MLflow's page of a logged model lists every entry, and of a series shows the first. The cost of
    a base, which was not measured, stays with its run: MLflow's table of models begins with the columns of the oldest model.
    """
    if keys.UA not in evidence.get("metrics", {}):
        model_id = None
    now, digest = int(time.time() * 1000), evidence.get("data_digest")
    name = evidence.get("parameters", {}).get("data.name")
    data = {"dataset_name": name, "dataset_digest": digest[: tracking.DIGEST_LENGTH]} if name and digest else {}
    metrics = [
        Metric(tracking.metric_key(key), float(value), now, 0, model_id=model_id, run_id=run_id, **data)
        for key, value in keys.charted(evidence.get("metrics", {})).items()
    ]
    if metrics:
        client.log_batch(run_id, metrics=metrics)


def _build(
    diffusion: Diffusion, evidence: Mapping[str, Any], about: Model, scratch: Path, known: Mapping[str, Place]
) -> tuple[str, dict[str, str]]:
    """Write a version's files; return their manifest's digest, and the tags of parts that versions share."""
    diffusion.save(scratch / "pipeline")
    shared = parts.tags(changes.thin(scratch / "pipeline", diffusion, known), scratch / "pipeline")
    (scratch / "evidence.json").write_text(json.dumps(evidence, indent=1, sort_keys=True) + "\n")
    mlflow.pyfunc.save_model(
        scratch / "version",
        python_model=served_model.__file__,
        artifacts={"pipeline": str(scratch / "pipeline"), "evidence": str(scratch / "evidence.json")},
        signature=served_model.signature(),
        code_paths=[str(Path(safemax.__file__).parent)],  # the version samples with the code that it was measured with
        pip_requirements=[f"{each}=={installed(each).partition('+')[0]}" for each in _SERVING_NEEDS],
        model_config=image_request.LIMITS,
        input_example=_example(diffusion, evidence["forgotten"]),
        mlflow_model=about,
    )
    return manifest.write(scratch / "version"), shared


def _example(diffusion: Diffusion, forgotten: Sequence[str]) -> tuple[pd.DataFrame, dict[str, Any]]:
    retained = [name for name in diffusion.class_names if name not in forgotten]
    return pd.DataFrame({"class_label": retained[:1]}), image_request.defaults()


def _create(
    client: MlflowClient, name: str, run_id: str, model_id: str, tags: Mapping[str, str], description: str
) -> ModelVersion:
    parts.refuse_absent(client, parts.needed_by(client.get_logged_model(model_id)))
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    return client.create_model_version(
        name, f"models:/{model_id}", run_id, dict(tags), description=tracking.spaced(description), model_id=model_id
    )


def _link(client: MlflowClient, version: ModelVersion) -> None:
    """Link the pages of the logged model and of the run to the version, as mlflow.register_model does."""
    link = json.dumps([{"name": version.name, "version": str(version.version)}])
    client.set_logged_model_tags(str(version.source).removeprefix("models:/"), {"mlflow.modelVersions": link})


def _set_alias(client: MlflowClient, name: str, alias: str, number: str) -> None:
    current = client.get_registered_model(name).aliases.get(alias)
    if current is None or int(current) < int(number):
        client.set_registered_model_alias(name, alias, number)
