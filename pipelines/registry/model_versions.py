"""Versions by address: what the registry says of them, their files and their evidence."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from pipelines import tracking
from pipelines.registry import copies
from pipelines.tracking import pages
from safemax.errors import InputError, unknown

MANIFEST, WEIGHTS = copies.MANIFEST, "digest.weights"  # tags of a version, and WEIGHTS of a logged model of ours
# Tags whose texts the evidence holds too, under other keys.
_IN_EVIDENCE = {
    "parent": "parent",
    "parent.digest": "parent_digest",
    "data.digest": "data_digest",
    WEIGHTS: "model_digest",
}
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
    return copies.whole(verified_copy(uri, fresh=fresh)) / copies.PIPELINE


def verified_copy(uri: str, *, fresh: bool = False, refuse_compiled: bool = False) -> Path:
    """Return the root of a private copy of a version, held against the registry's digest, deleted when the process ends.

    A process downloads a version once: a copy that still has the digest which the registry states now is given again.

    Args:
        uri: models:/NAME/3 or models:/NAME@alias.
        fresh: download it in any case, for those who vouch for the files in the store.
        refuse_compiled: as of `copies.download`; implies fresh.

    Raises:
        InputError: no such version, or one of its files is missing, changed or added.
    """
    version = version_of(uri)
    address, digest = f"models:/{version.name}/{version.version}", version.tags.get(MANIFEST)
    return copies.verified(address, digest, fresh=fresh, refuse_compiled=refuse_compiled)


def evidence(uri: str, *, fresh: bool = False) -> dict[str, Any]:
    """Return the evidence that a version was registered with; InputError as of `verified_copy`, or where it is no JSON object."""
    return evidence_beside(verified_copy(uri, fresh=fresh) / copies.PIPELINE)


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


def _absent(client: MlflowClient, name: str, which: str) -> InputError:
    names = [each.name for each in tracking.search_all(client.search_registered_models)]
    if name not in names:
        return unknown("registered model", name, names)
    aliases = [f"@{each}" for each in client.get_registered_model(name).aliases]
    versions = tracking.search_all(client.search_model_versions, f"name='{name}'")
    return unknown(
        f"version of {name}", which, [*aliases, *sorted((int(each.version) for each in versions), reverse=True)]
    )
