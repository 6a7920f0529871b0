"""Training state on disk: one safetensors file a step, whole or absent, verified by the digest in its name."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

_NAME = re.compile(r"step-(\d{8})-([0-9a-f]{64})\.safetensors")
KEEP = 2


@dataclass(frozen=True)
class Checkpoint:
    """The state after `step` steps: tensors by name, and what is known about the run so far (JSON)."""

    step: int
    tensors: dict[str, Tensor]
    about: dict[str, Any]


def write(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint atomically and durably, then drop all but the newest two.

    The bytes are on disk before the name appears, and the name is on disk before the older files go, so that a kill or a
    power cut at any moment leaves at least one whole checkpoint. A full disk raises OSError and leaves the older ones.
    """
    folder.mkdir(parents=True, exist_ok=True)
    payload = save(checkpoint.tensors, metadata={"about": json.dumps(checkpoint.about)})
    name = f"step-{checkpoint.step:08d}-{hashlib.sha256(payload).hexdigest()}.safetensors"
    temporary = folder / f"{name}.{os.getpid()}.tmp"
    try:
        with temporary.open("wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    temporary.replace(folder / name)
    _sync(folder)
    for old in _files(folder)[KEEP:]:
        old.unlink(missing_ok=True)
    return folder / name


def newest(folder: Path) -> Checkpoint | None:
    """Return the newest checkpoint whose bytes match its name; what a kill left half-written or a disk damaged is passed over."""
    for path in _files(folder):
        payload = path.read_bytes()
        step, expected = _NAME.fullmatch(path.name).groups()  # type: ignore[union-attr]  # _files matched it
        if hashlib.sha256(payload).hexdigest() == expected:
            return Checkpoint(int(step), load(payload), _about(payload))
    return None


def clear(folder: Path) -> None:
    """Delete a job's checkpoints once its result is kept elsewhere: they hold the weights before unlearning too."""
    for path in [*_files(folder), *folder.glob("*.tmp")]:
        path.unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted((p for p in folder.iterdir() if _NAME.fullmatch(p.name)), key=lambda p: p.name, reverse=True)


def _about(payload: bytes) -> dict[str, Any]:
    length = int.from_bytes(payload[:8], "little")
    try:
        return json.loads(json.loads(payload[8 : 8 + length])["__metadata__"]["about"])
    except (KeyError, ValueError) as error:
        raise SafetensorError(f"a checkpoint without its description: {error}") from error


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
