"""Models of others by path or hub id: a folder as it is, or a repository of the Hugging Face hub from its local cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download

from safemax.errors import InputError


def is_id(source: str) -> bool:
    """Return whether a source that is no path here can be a hub id, owner/name."""
    return source.count("/") == 1 and not source.startswith((".", "/", "~")) and not Path(source).exists()


def fetch(what: str, source: str, patterns: Sequence[str]) -> Path:
    """Return the folder of a repository of the hub, downloaded unless the hub's cache on this machine has it.

    Args:
        what: the parameter, for messages.
        source: owner/name.
        patterns: of the files that are wanted.

    Raises:
        InputError: the hub does not give it, and the cache does not have it.
    """
    try:
        return Path(snapshot_download(source, allow_patterns=list(patterns)))
    except Exception as error:  # the hub client raises by transport: network, missing repository, gated, offline
        reason = str(error).splitlines()[0]
        raise InputError(f"{what} = {source} is neither a folder nor a model that the hub gives: {reason}") from error
