"""Where work that later runs can use again is kept: decoded data, judges, priors, base samples, checkpoints."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor


def root() -> Path:
    """Return SAFEMAX_CACHE, or .safemax in the working directory."""
    return Path(os.environ.get("SAFEMAX_CACHE") or ".safemax")


def folder(kind: str) -> Path:
    """Return the folder of one kind of work."""
    return root() / kind


def key(facts: Mapping[str, Any]) -> str:
    """Return 16 hex digits that name a piece of work by everything that it depends on."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """Return the sha256 (hex) of a state dict: names, types, shapes and bytes."""
    sha = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        sha.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        sha.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()


def tensors(path: Path, make: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return what a file of `write_tensors` holds, or what `make` returns, which is kept there; all on the CPU."""
    found = read_tensors(path)
    if found is None:
        found = {name: tensor.detach().cpu().contiguous() for name, tensor in make().items()}
        write_tensors(path, found)
    return found


def read_tensors(path: Path) -> dict[str, Tensor] | None:
    """Read what `write_tensors` wrote; None where there is none or where it does not hold what was written."""
    try:
        with safe_open(path, "pt") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            digest = (file.metadata() or {}).get("digest")
    except (OSError, SafetensorError):
        return None
    return found if weights_digest(found) == digest else None


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as one safetensors file with their digest, whole or not at all."""
    write(
        path, save({name: tensor.contiguous() for name, tensor in tensors.items()}, {"digest": weights_digest(tensors)})
    )


def as_tensor(value: Any) -> Tensor:
    """Return a JSON value as a tensor, to keep it in a file of tensors."""
    return torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8)


def from_tensor(tensor: Tensor) -> Any:
    """Return the value that `as_tensor` took."""
    return json.loads(bytes(tensor.tolist()))


def write(path: Path, payload: bytes) -> None:
    """Write a file that is either whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(payload)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def publish(folder: Path, write: Callable[[Path], None]) -> None:
    """Make a folder that is either whole or not there; where another process made it meanwhile, its own is kept.

    Args:
        folder: what it is called in the end.
        write: fills the folder whose path it gets.
    """
    temporary = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    write(temporary)
    try:
        temporary.rename(folder)
    except OSError:  # another process was first
        if not folder.exists():
            raise
        shutil.rmtree(temporary)
