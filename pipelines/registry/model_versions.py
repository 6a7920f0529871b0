"""What the model registry holds: versions by address, their files verified before anyone loads them, their evidence."""

from __future__ import annotations

import atexit
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from pipelines import tracking
from pipelines.registry import served_model
from safemax.errors import InputError, unknown
from safemax.storage import manifest

MANIFEST, WEIGHTS = "digest.manifest", "digest.weights"  # tags of a version, and WEIGHTS of a logged model of ours
_ADDRESS = re.compile(r"models:/(?P<name>[^/@:]+)(/(?P<version>[0-9]{1,9})|@(?P<alias>[A-Za-z0-9_-]+))")


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
        download(f"models:/{found.name}/{found.version}", folder, found.tags.get(MANIFEST)) / "artifacts" / "pipeline"
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


def download(uri: str, folder: Path, digest: str | None) -> Path:
    """Fetch a version's or logged model's files into a folder, hold them against a manifest's digest and return their place.

    Raises:
        InputError: they cannot be read, were not registered by this project (digest None), or are not what was registered.
    """
    if digest is None:
        raise InputError(f"model = {uri} was not registered by this project: it has no tag {MANIFEST}")
    try:
        root = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(folder)))
    except (MlflowException, OSError) as error:
        raise InputError(f"model = {uri} cannot be read: {str(error).splitlines()[0]}") from error
    for name in served_model.LEFT_BY_LOADERS:
        for path in root.rglob(name):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    if manifest.verify(root) != digest:
        raise InputError(f"model = {uri} is not what was registered: its manifest does not match its tag {MANIFEST}")
    return root


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


def _absent(client: MlflowClient, name: str, which: str) -> InputError:
    names = [each.name for each in client.search_registered_models()]
    if name not in names:
        return unknown("registered model", name, names)
    numbers = sorted((int(each.version) for each in client.search_model_versions(f"name='{name}'")), reverse=True)
    return unknown(
        f"version of {name}", which, [*(f"@{each}" for each in client.get_registered_model(name).aliases), *numbers]
    )
