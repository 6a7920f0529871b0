"""The one place that writes versions: whole or absent, once a run, verified before anyone loads them."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import hashlib
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model

import safemax
from pipelines import serving, tracking
from safemax import manifest
from safemax.diffusion import Diffusion
from safemax.errors import InputError, unknown

MANIFEST, WEIGHTS = "digest.manifest", "digest.weights"  # tags of a version, and WEIGHTS of a logged model of ours
# The metrics that become tags of a version. The registry's pages list every tag of every version, so there are few.
TAGGED = (
    *("forget/ua", "forget/recognised", "forget/recognised_high", "retain/accuracy", "retain/fid_inception"),
    *("retain/fid_judge", "cost/runtime_minutes", "cost/peak_memory_gb"),
)
_ADDRESS = re.compile(r"models:/(?P<name>[^/@:]+)(/(?P<version>[0-9]{1,9})|@(?P<alias>[A-Za-z0-9_-]+))")
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

    The files go up first, are read back and verified; then the version appears, with all its tags; the alias comes
    last. A kill before the version appears leaves a logged model that no version names, and at most a registered name
    without versions: nothing that loads, and `sweep` removes both. Called again for the same run and weights, it
    returns the version that is there.

    Args:
        diffusion: the model.
        name: the registered model, such as digits-ddpm; created where it is missing.
        run_id: the run that made the model.
        evidence: JSON; `forgotten` lists the names of all classes forgotten so far, `metrics` (optional) maps keys to
            numbers. The classes and the metrics of TAGGED become tags too: the registry shows nothing else.
        tags: further tags.
        description: markdown for the version's page.
        alias: moved to the version unless a newer one holds it.
    """
    client, weights = tracking.store(), diffusion.digest()
    number = _existing(client, name, run_id, weights)
    if number is None:
        metrics = {key: f"{value:.6g}" for key, value in evidence.get("metrics", {}).items() if key in TAGGED}
        facts = {**metrics, "forgotten": ",".join(evidence["forgotten"]), **tags, WEIGHTS: weights}
        model_id, facts[MANIFEST] = _upload(client, diffusion, name, run_id, evidence, weights)
        with lock(name):
            number = _existing(client, name, run_id, weights) or _create(
                client, name, run_id, model_id, facts, description
            )
    if alias is not None:
        _point(client, name, alias, number)
    return number


def resolve(uri: str) -> Path:
    """Return the diffusers folder of a version, a private and verified copy that lives as long as the process.

    Args:
        uri: models:/NAME/3 or models:/NAME@alias; a path or a hub id is returned as it is.

    Raises:
        InputError: no such version, or a file of it is missing, changed or added.
    """
    if not uri.startswith("models:"):
        return Path(uri)
    folder = Path(tempfile.mkdtemp(prefix="safemax-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    found = version_of(uri)
    return (
        _download(f"models:/{found.name}/{found.version}", folder, found.tags.get(MANIFEST)) / "artifacts" / "pipeline"
    )


def evidence(uri: str) -> dict[str, Any]:
    """Return the evidence a version was registered with; InputError as in `resolve`."""
    return json.loads((resolve(uri).parent / "evidence.json").read_text())


def version_of(uri: str) -> ModelVersion:
    """Return what the registry knows of models:/NAME/3 or models:/NAME@alias: name, version, tags, aliases, run_id.

    Raises:
        InputError: another kind of address, or nothing there, with what is.
    """
    parts = _ADDRESS.fullmatch(uri)
    if parts is None:
        raise InputError(f"model = {uri} is not allowed; an address is models:/NAME/VERSION or models:/NAME@ALIAS")
    client, (name, number, alias) = tracking.store(), parts.group("name", "version", "alias")
    try:
        return client.get_model_version(name, number) if number else client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        raise _absent(client, name, number or f"@{alias}") from None


def pinned(uri: str) -> str:
    """Return the address of the version that an alias points to now; other addresses are returned as they are."""
    if not uri.startswith("models:"):
        return uri
    found = version_of(uri)
    return f"models:/{found.name}/{found.version}"


def link(address: str) -> str:
    """Return the markdown that leads a reader of the UI to a version; other addresses are returned as code."""
    parts = _ADDRESS.fullmatch(address)
    if parts is None or parts["version"] is None:
        return f"`{address}`"
    name, version = parts["name"], parts["version"]
    return f"[{name} version {version}](#/models/{name}/versions/{version}?{tracking.MODE})"


def find(name: str, alias: str) -> str | None:
    """Return models:/NAME/VERSION of an alias, or None where there is no such model or alias."""
    try:
        aliases = tracking.store().get_registered_model(name).aliases
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return f"models:/{name}/{aliases[alias]}" if alias in aliases else None


def holder(name: str, alias: str) -> str | None:
    """Return the number of the version that an alias points to, or None where there is no such model or alias."""
    found = find(name, alias)
    return found.rpartition("/")[2] if found else None


def copy(address: str, name: str) -> str:
    """Make a version one of another registered model too, with its files and tags; return its number there.

    Called again, it returns the version that is there. The source may be deleted later: the copy keeps the files.
    """
    found, client = version_of(address), tracking.store()
    with lock(name):
        there = client.search_model_versions(f"name='{name}'")
        same = [str(each.version) for each in there if each.tags.get(MANIFEST) == found.tags.get(MANIFEST)]
        if same:
            return same[0]
        with contextlib.redirect_stderr(io.StringIO()):  # MLflow prints that it copies, and from which of its methods
            return str(client.copy_model_version(f"models:/{found.name}/{found.version}", name).version)


def attach(address: str, kind: str, run_id: str, path: str | Path) -> None:
    """Give a version evidence that was made later: a file becomes a run's artifact, and a tag of the version names it.

    The tag evidence.KIND holds the run, the artifact's path and sha256, and the manifest digest of the version that it
    was measured on, as JSON. It replaces an earlier one of its kind.

    Args:
        address: the version that was measured.
        kind: attacks, panel or report.
        run_id: the run that measured it.
        path: the file.
    """
    found, client, path = version_of(address), tracking.store(), Path(path)
    client.log_artifact(run_id, str(path), "evidence")
    about = {
        "run": run_id,
        "path": f"evidence/{path.name}",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "manifest": found.tags[MANIFEST],
    }
    client.set_model_version_tag(found.name, str(found.version), f"evidence.{kind}", json.dumps(about))


def attached(address: str, kind: str) -> bytes | None:
    """Return what `attach` gave a version, None where there is nothing of the kind.

    Raises:
        InputError: it was measured on other files than the version's, or is gone or changed.
    """
    found = version_of(address)
    if f"evidence.{kind}" not in found.tags:
        return None
    about = json.loads(found.tags[f"evidence.{kind}"])
    if about["manifest"] != found.tags.get(MANIFEST):
        raise InputError(f"evidence {kind} of {address} was measured on other files than the version has")
    with tempfile.TemporaryDirectory() as scratch:
        try:
            content = Path(tracking.store().download_artifacts(about["run"], about["path"], scratch)).read_bytes()
        except (MlflowException, OSError) as error:
            raise InputError(f"evidence {kind} of {address} cannot be read: {str(error).splitlines()[0]}") from error
    if hashlib.sha256(content).hexdigest() != about["sha256"]:
        raise InputError(f"evidence {kind} of {address} has changed since it was recorded")
    return content


def sweep(name: str) -> list[str]:
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


@contextmanager
def lock(name: str) -> Iterator[None]:
    """Hold a registered model for a check and a change, among the processes of this user on this machine.

    The kernel releases it when a process dies. MLflow has no compare-and-swap, so other machines are not kept out.
    """
    key = hashlib.sha256(f"{mlflow.get_tracking_uri()} {name}".encode()).hexdigest()[:16]
    path = Path(tempfile.gettempdir()) / f"safemax-{os.getuid()}-{key}.lock"
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _existing(client: MlflowClient, name: str, run_id: str, weights: str) -> str | None:
    versions = client.search_model_versions(f"name='{name}' and run_id='{run_id}'")
    return next((str(each.version) for each in versions if each.tags.get(WEIGHTS) == weights), None)


def _upload(
    client: MlflowClient, diffusion: Diffusion, name: str, run_id: str, evidence: Mapping[str, Any], weights: str
) -> tuple[str, str]:
    experiment_id = client.get_run(run_id).info.experiment_id
    model = client.create_logged_model(experiment_id, name, run_id, tags={WEIGHTS: weights}, model_type="diffusion")
    about = Model(
        artifact_path=model.artifact_location, run_id=run_id, model_uuid=model.model_id, model_id=model.model_id
    )
    with tempfile.TemporaryDirectory() as scratch:
        digest = _build(diffusion, evidence, about, Path(scratch))
        client.log_model_artifacts(model.model_id, f"{scratch}/version")
    client.finalize_logged_model(model.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    with tempfile.TemporaryDirectory() as scratch:
        _download(f"models:/{model.model_id}", Path(scratch), digest)
    return model.model_id, digest


def _build(diffusion: Diffusion, evidence: Mapping[str, Any], about: Model, scratch: Path) -> str:
    diffusion.save(scratch / "pipeline")
    (scratch / "evidence.json").write_text(json.dumps(evidence, indent=1, sort_keys=True) + "\n")
    mlflow.pyfunc.save_model(
        scratch / "version",
        python_model=serving.__file__,
        artifacts={"pipeline": str(scratch / "pipeline"), "evidence": str(scratch / "evidence.json")},
        signature=serving.signature(),
        code_paths=[str(Path(safemax.__file__).parent)],  # the version draws with the code that it was measured with
        pip_requirements=[f"{each}=={installed(each).partition('+')[0]}" for each in _SERVING_NEEDS],
        model_config=serving.LIMITS,
        input_example=_example(diffusion, evidence["forgotten"]),
        mlflow_model=about,
    )
    return manifest.write(scratch / "version")


def _example(diffusion: Diffusion, forgotten: Sequence[str]) -> tuple[pd.DataFrame, dict[str, Any]]:
    kept = [name for name in diffusion.class_names if name not in forgotten]
    return pd.DataFrame({"class_label": kept[:1]}), serving.defaults()


def _create(
    client: MlflowClient, name: str, run_id: str, model_id: str, tags: Mapping[str, str], description: str
) -> str:
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    source = f"models:/{model_id}"
    made = client.create_model_version(
        name, source, run_id, dict(tags), description=tracking.spaced(description), model_id=model_id
    )
    # What mlflow.register_model writes too: it links the logged model's page and the run's to the version.
    link = json.dumps([{"name": name, "version": str(made.version)}])
    client.set_logged_model_tags(model_id, {"mlflow.modelVersions": link})
    return str(made.version)


def _point(client: MlflowClient, name: str, alias: str, number: str) -> None:
    holder = client.get_registered_model(name).aliases.get(alias)
    if holder is None or int(holder) < int(number):
        client.set_registered_model_alias(name, alias, number)


def _download(uri: str, folder: Path, digest: str | None) -> Path:
    if digest is None:
        raise InputError(f"model = {uri} was not registered by this project: it has no tag {MANIFEST}")
    try:
        root = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(folder)))
    except (MlflowException, OSError) as error:
        raise InputError(f"model = {uri} cannot be read: {str(error).splitlines()[0]}") from error
    for name in serving.LEFT_BY_LOADERS:
        for path in root.rglob(name):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    if manifest.verify(root) != digest:
        raise InputError(f"model = {uri} is not what was registered: its manifest does not match its tag {MANIFEST}")
    return root


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


def _absent(client: MlflowClient, name: str, which: str) -> InputError:
    names = [each.name for each in client.search_registered_models()]
    if name not in names:
        return unknown("registered model", name, names)
    numbers = sorted((int(each.version) for each in client.search_model_versions(f"name='{name}'")), reverse=True)
    return unknown(
        f"version of {name}", which, [*(f"@{each}" for each in client.get_registered_model(name).aliases), *numbers]
    )
