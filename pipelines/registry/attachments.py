"""Evidence that is measured after a version was registered: attached to it, read back, mentioned in its description."""

from __future__ import annotations

import hashlib
import json
import tempfile
from datetime import date
from pathlib import Path

from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from pipelines import tracking
from pipelines.registry.model_versions import MANIFEST, version_of
from safemax.errors import InputError

_ATTACHMENT = ("run", "path", "sha256", "manifest")  # what the tag of an attachment holds
_REPORTED = "As it was registered:"  # in a description, between the newest examination and what was there before


def attach(address: str, kind: str, run_id: str, path: str | Path) -> None:
    """Add evidence to a version that was measured later: a file becomes a run's artifact, and a tag of the version names it.

    The tag evidence.KIND holds, as JSON, the run, the artifact's path and sha256, and the manifest digest of the version
    that was measured. It replaces an earlier one of its kind.

    Args:
        address: the version that was measured.
        kind: attacks, panel or report.
        run_id: the run that measured it.
        path: the file.
    """
    version, client, path = version_of(address), tracking.store(), Path(path)
    client.log_artifact(run_id, str(path), "evidence")
    about = {
        "run": run_id,
        "path": f"evidence/{path.name}",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "manifest": version.tags[MANIFEST],
    }
    client.set_model_version_tag(version.name, str(version.version), f"evidence.{kind}", json.dumps(about))


def attached(address: str, kind: str) -> bytes | None:
    """Return the evidence of a kind that `attach` gave a version, None if there is none.

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


def mention_report(address: str, page: str, judged: str) -> None:
    """Begin the description of a version with its newest examination, before what it was registered with.

    Args:
        address: of the version.
        page: a link within the UI to the report.
        judged: the verdict of the examination, a sentence.
    """
    version = version_of(address)
    earlier = str(version.description or "").rpartition(_REPORTED)[2].lstrip()
    line = f"**Examined on {date.today()}: {judged}** [Open the report]({page})"
    tracking.store().update_model_version(version.name, str(version.version), f"{line}\n\n{_REPORTED}\n\n{earlier}")


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
