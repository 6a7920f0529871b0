"""Versions by address: their files, verified before they are loaded, and their evidence."""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from pipelines import tracking
from pipelines.registry import parts, served_model
from pipelines.tracking import pages, store_files
from safemax.errors import InputError, unknown
from safemax.storage import manifest

MANIFEST, WEIGHTS = "digest.manifest", "digest.weights"  # tags of a version, and WEIGHTS of a logged model of ours
# Tags whose texts the evidence holds too, under other keys.
_IN_EVIDENCE = {
    "parent": "parent",
    "parent.digest": "parent_digest",
    "data.digest": "data_digest",
    WEIGHTS: "model_digest",
}
_ATTACHMENT = ("run", "path", "sha256", "manifest")  # what the tag of an attachment holds
_copies: dict[str, Path] = {}  # verified copies of this process, by the digest of their manifest
_ADDRESS = re.compile(r"models:/(?P<name>[^/@:]+)(/(?P<version>[0-9]{1,9})|@(?P<alias>[A-Za-z0-9_-]+))")


def is_registry_address(address: str) -> bool:
    """Return whether an address names a version in the registry (models:/...), not a folder or a hub id."""
    return address.startswith("models:")


def resolve(uri: str, *, fresh: bool = False) -> Path:
    """Return the diffusers folder of a version: a private, verified, whole copy, deleted when the process ends.

    Args:
        uri: models:/NAME/3 or models:/NAME@alias; a path or a hub id is returned unchanged.
        fresh: as of `verified_copy`.

    Raises:
        InputError: no such version, one of its files is missing, changed or added, or a part that it shares is gone.
    """
    if not is_registry_address(uri):
        return Path(uri)
    return parts.complete(verified_copy(uri, fresh=fresh) / "artifacts" / "pipeline")


def verified_copy(uri: str, *, fresh: bool = False, refuse_compiled: bool = False) -> Path:
    """Return the root of a private copy of a version, held against the registry's digest, deleted when the process ends.

    A process downloads a version once: a copy that still has the digest which the registry states now is given again.

    Args:
        uri: models:/NAME/3 or models:/NAME@alias.
        fresh: download it in any case, for those who vouch for the files in the store.
        refuse_compiled: as of `download`; implies fresh.

    Raises:
        InputError: no such version, or one of its files is missing, changed or added.
    """
    version = version_of(uri)
    address, digest = f"models:/{version.name}/{version.version}", version.tags.get(MANIFEST)
    known = _copies.get(digest or "")
    if known and not (fresh or refuse_compiled) and _has_digest(known, digest):
        return known
    folder = Path(tempfile.mkdtemp(prefix="safemax-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    root = _copies[str(digest)] = download(address, folder, digest, refuse_compiled=refuse_compiled)
    return root


def _has_digest(root: Path, digest: str | None) -> bool:
    """Return whether a copy of this process is still what it was; one that `resolve` completed with shared parts is not."""
    with contextlib.suppress(InputError, OSError):
        return manifest.verify(root) == digest
    return False


def evidence(uri: str, *, fresh: bool = False) -> dict[str, Any]:
    """Return the evidence that a version was registered with; InputError as of `verified_copy`, or where it is no JSON object."""
    return evidence_beside(verified_copy(uri, fresh=fresh) / "artifacts" / "pipeline")


def evidence_beside(pipeline: Path) -> dict[str, Any]:
    """Return the evidence in the folder of a verified copy that `resolve` returned."""
    return json_object((pipeline.parent / "evidence.json").read_bytes(), "the version's evidence.json")


def json_object(content: bytes, what: str) -> dict[str, Any]:
    """Return the JSON object that a file holds; InputError where it holds none."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise InputError(f"{what} is not a JSON object; measure and register again")
    return value


def tags_of(version: ModelVersion) -> dict[str, str]:
    """Return a version's tags; those that an export and import of its registered model lost are read from its evidence."""
    tags = dict(version.tags)
    if MANIFEST not in tags or "forgotten" in tags:
        return tags
    facts = evidence(f"models:/{version.name}/{version.version}")
    forgotten = facts.get("forgotten")
    texts = {"forgotten": ",".join(map(str, forgotten)) if isinstance(forgotten, list) else None}
    texts |= {tag: facts.get(key) for tag, key in _IN_EVIDENCE.items()}
    return {tag: text for tag, text in texts.items() if isinstance(text, str)} | tags


def version_of(uri: str) -> ModelVersion:
    """Return the registry's entry of models:/NAME/3 or models:/NAME@alias: name, version, tags, aliases, run_id.

    Raises:
        InputError: not such an address, or no such version; the message lists the known ones.
    """
    parts = _ADDRESS.fullmatch(uri)
    if parts is None:
        raise InputError(f"model = {uri} is not allowed; an address is models:/NAME/VERSION or models:/NAME@ALIAS")
    name, number, alias = parts.group("name", "version", "alias")
    if tracking.is_absent():
        raise unknown("registered model", name, [])
    client = tracking.store()
    try:
        return client.get_model_version(name, number) if number else client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        raise _absent(client, name, number or f"@{alias}") from None


def resolve_alias(uri: str) -> str:
    """Return the address of the version that an alias points to now; other addresses are returned unchanged."""
    if not is_registry_address(uri):
        return uri
    version = version_of(uri)
    return f"models:/{version.name}/{version.version}"


def link(address: str) -> str:
    """Return a markdown link to a version's page in the UI; other addresses are returned as code."""
    parts = _ADDRESS.fullmatch(address)
    if parts is None or parts["version"] is None:
        return f"`{address}`"
    name, version = parts["name"], parts["version"]
    return f"[{name} version {version}]({pages.version_page(name, version)})"


def url(address: str) -> str:
    """Return the page of a version as a link from outside the UI, "" for what is not a version's address."""
    parts = _ADDRESS.fullmatch(address)
    if parts is None or parts["version"] is None:
        return ""
    return pages.address(pages.version_page(parts["name"], parts["version"]))


def find(name: str, alias: str) -> str | None:
    """Return models:/NAME/VERSION of an alias, or None if there is no such model or alias."""
    if tracking.is_absent():
        return None
    try:
        aliases = tracking.store().get_registered_model(name).aliases
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return f"models:/{name}/{aliases[alias]}" if alias in aliases else None


def aliased_number(name: str, alias: str) -> str | None:
    """Return the number of the version that an alias points to, or None if there is no such model or alias."""
    address = find(name, alias)
    return address.rpartition("/")[2] if address else None


def attached(address: str, kind: str) -> bytes | None:
    """Return the evidence of a kind that `registration.attach` gave a version, None if there is none.

    Raises:
        InputError: it was measured on other files than the version's, is missing or changed, or its tag is damaged.
    """
    version = version_of(address)
    if f"evidence.{kind}" not in version.tags:
        return None
    about = _attachment(version, kind)
    if about["manifest"] != version.tags.get(MANIFEST):
        raise InputError(f"evidence {kind} of {address} was measured on files other than the version's")
    with tempfile.TemporaryDirectory() as scratch:
        try:
            content = Path(tracking.store().download_artifacts(about["run"], about["path"], scratch)).read_bytes()
        except (MlflowException, OSError) as error:
            raise InputError(f"evidence {kind} of {address} cannot be read: {str(error).splitlines()[0]}") from error
    if hashlib.sha256(content).hexdigest() != about["sha256"]:
        raise InputError(f"evidence {kind} of {address} has changed since it was recorded")
    return content


def _attachment(version: ModelVersion, kind: str) -> dict[str, str]:
    """Return what the tag of an attachment says: run, path, sha256 of the file, and the manifest it was measured on."""
    try:
        about = json.loads(version.tags[f"evidence.{kind}"])
    except ValueError:
        about = None
    if not isinstance(about, dict) or any(not isinstance(about.get(key), str) for key in _ATTACHMENT):
        raise InputError(
            f"the tag evidence.{kind} of models:/{version.name}/{version.version} is damaged: measure it again"
        )
    return about


def download(uri: str, folder: Path, digest: str | None, *, refuse_compiled: bool = False) -> Path:
    """Download a version's or logged model's files into a folder, verify them by a manifest's digest and return their root.

    Compiled files, which a loader may have left, are not part of a version: they are removed from the copy, or refused.

    Args:
        uri: of a version or a logged model.
        folder: an empty one.
        digest: of the manifest, as the registry has it.
        refuse_compiled: whether compiled files are an error, since the version's code is to be run.

    Raises:
        InputError: they cannot be read, were not registered by this project (digest None), or are not what was registered.
    """
    if digest is None:
        raise _without_digest(uri, folder)
    try:
        store_files.refuse_absent(f"model = {uri}", _location(uri))
        root = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(folder)))
    except (MlflowException, OSError) as error:
        raise InputError(f"model = {uri} cannot be read: {str(error).splitlines()[0]}") from error
    if refuse_compiled and (planted := served_model.compiled(root)):
        line = (
            f"model = {uri} holds compiled files that no manifest lists and that Python would run: {', '.join(planted)}"
        )
        raise InputError(f"{line[:400]}; delete them if you know who wrote them")
    for name in served_model.LEFT_BY_LOADERS:
        for path in root.rglob(name):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    if manifest.verify(root) != digest:
        raise InputError(f"model = {uri} is not what was registered: its manifest does not match its tag {MANIFEST}")
    return root


def _without_digest(uri: str, folder: Path) -> InputError:
    """Return the error for a version without its tag; if its files know their own digest, the tag was lost on the way."""
    line = f"model = {uri} was not registered by this project: it has no tag {MANIFEST}"
    try:
        root = mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(folder))
        digest = manifest.verify(root, tolerate=served_model.LEFT_BY_LOADERS)
    except (InputError, MlflowException, OSError):
        return InputError(line)
    return InputError(
        f"{line}. Its own manifest says that its files are whole, so an export and import may have lost the tags: if you trust "
        f"where they come from, set that tag of the version to {digest}"
    )


def _location(uri: str) -> str:
    """Return where the store records the files of models:/NAME/VERSION or of models:/ID, a logged model."""
    client, (name, _, number) = tracking.store(), uri.removeprefix("models:/").partition("/")
    if not number:
        return str(client.get_logged_model(name).artifact_location)
    return client.get_model_version_download_uri(name, number)


def _absent(client: MlflowClient, name: str, which: str) -> InputError:
    names = [each.name for each in tracking.search_all(client.search_registered_models)]
    if name not in names:
        return unknown("registered model", name, names)
    aliases = [f"@{each}" for each in client.get_registered_model(name).aliases]
    versions = tracking.search_all(client.search_model_versions, f"name='{name}'")
    return unknown(
        f"version of {name}", which, [*aliases, *sorted((int(each.version) for each in versions), reverse=True)]
    )
