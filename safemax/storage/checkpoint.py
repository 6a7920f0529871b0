"""Checkpoints: one safetensors file a step, whole or absent, verified by the digest in its name."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from safemax.storage import atomic, cache

_NAME = re.compile(r"step-(\d{8})-([0-9a-f]{64})\.safetensors")
KEEP = 2  # newest checkpoints that stay


@dataclass(frozen=True)
class Checkpoint:
    """The state after `step` steps: named tensors, and JSON facts about the run so far."""

    step: int
    tensors: dict[str, Tensor]
    about: dict[str, Any]


def write(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint atomically and durably, then delete all but the newest KEEP.

    The new file and its name are on disk before older files are deleted, so a kill or a power cut at any moment leaves
    at least one whole checkpoint. A full disk raises OSError and leaves the older ones.
    """
    payload = _payload(checkpoint)
    path = folder / f"step-{checkpoint.step:08d}-{hashlib.sha256(payload).hexdigest()}.safetensors"
    atomic.write_bytes(path, payload)
    for old in _files(folder)[KEEP:]:
        old.unlink(missing_ok=True)
    return path


def newest(folder: Path) -> Checkpoint | None:
    """Return the newest checkpoint that is whole: its bytes match the digest in its name and hold what `write` writes.

    Whatever is not whole is passed over; None if nothing is left.
    """
    cache.has(folder)
    return next((whole for path in _files(folder) if (whole := _read(path)) is not None), None)


def pack(checkpoint: Checkpoint) -> bytes:
    """Return a checkpoint as bytes, to send to another process: the step in 8 bytes, then safetensors."""
    return checkpoint.step.to_bytes(8, "little") + _payload(checkpoint)


def unpack(packed: bytes) -> Checkpoint:
    """Return the checkpoint that `pack` made bytes of."""
    payload = packed[8:]
    return Checkpoint(int.from_bytes(packed[:8], "little"), load(payload), _about(payload))


def clear(folder: Path) -> None:
    """Delete all checkpoints of a folder, and the folder if nothing else is in it.

    To be called once the result is saved elsewhere: checkpoints of an unlearning run hold the weights before it too.
    """
    for path in [*_files(folder), *folder.glob(atomic.TEMPORARY)]:
        path.unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _payload(checkpoint: Checkpoint) -> bytes:
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
    return save(tensors, metadata={"about": json.dumps(checkpoint.about)})


def _files(folder: Path) -> list[Path]:
    """Return the checkpoint files of a folder, newest first; a folder that is named like one is none."""
    if not folder.is_dir():
        return []
    files = (each for each in folder.iterdir() if _NAME.fullmatch(each.name) and each.is_file())
    return sorted(files, key=lambda each: each.name, reverse=True)


def _read(path: Path) -> Checkpoint | None:
    payload = path.read_bytes()
    step, expected = _NAME.fullmatch(path.name).groups()  # type: ignore[union-attr]  # _files matched it
    if hashlib.sha256(payload).hexdigest() != expected:
        return None
    try:
        about = _about(payload)
        return Checkpoint(int(step), load(payload), about) if isinstance(about, dict) else None
    except (SafetensorError, LookupError, TypeError, ValueError, RecursionError):  # written by something else
        return None


def _about(payload: bytes) -> Any:
    length = int.from_bytes(payload[:8], "little")  # safetensors: 8 bytes, then a JSON header of that length
    return json.loads(json.loads(payload[8 : 8 + length])["__metadata__"]["about"])
