"""Private copies of versions' files: verified before anything loads them, made once a process, deleted when it ends."""

from __future__ import annotations

import atexit
import contextlib
import shutil
import tempfile
from pathlib import Path

import mlflow
from mlflow.exceptions import MlflowException

from pipelines import tracking
from pipelines.registry import parts, served_model
from pipelines.tracking import store_files
from safemax.diffusion import changes
from safemax.errors import InputError
from safemax.storage import manifest

MANIFEST = "digest.manifest"  # tag of a version
PIPELINE = "artifacts/pipeline"  # the diffusers folder of a version
_verified: dict[str, Path] = {}  # copies of this process, by the digest of their manifest
_completed: dict[Path, tuple[Path, str]] = {}  # by verified copy: one made whole, and the digest of its manifest


def verified(address: str, digest: str | None, *, fresh: bool = False, refuse_compiled: bool = False) -> Path:
    """Return the root of a copy of a version that has the digest which the registry states now.

    Args:
        address: models:/NAME/VERSION.
        digest: of its manifest, as the registry has it.
        fresh: download it in any case.
        refuse_compiled: as of `download`; implies fresh.

    Raises:
        InputError: as of `download`.
    """
    known = _verified.get(digest or "")
    if known and not (fresh or refuse_compiled) and _has_digest(known, digest):
        return known
    root = _verified[str(digest)] = download(address, _folder(), digest, refuse_compiled=refuse_compiled)
    return root


def whole(root: Path) -> Path:
    """Return the root of a verified copy with the parts that its version shares: itself, or where it has some, another copy.

    Raises:
        InputError: a part is gone or has changed.
    """
    if not (root / PIPELINE / changes.STATED).exists():
        return root
    completed, digest = _completed.get(root, (root, None))
    if digest is None or not _has_digest(completed, digest):
        completed = Path(shutil.copytree(root, _folder() / "version"))
        parts.complete(completed / PIPELINE)
        _completed[root] = completed, manifest.write(completed)
    return completed


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


def _folder() -> Path:
    """Return an empty folder, deleted when the process ends."""
    folder = Path(tempfile.mkdtemp(prefix="safemax-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _has_digest(root: Path, digest: str | None) -> bool:
    """Return whether a copy of this process is still what it was."""
    with contextlib.suppress(InputError, OSError):
        return manifest.verify(root) == digest
    return False
