"""The cache of work that later runs can use again: decoded data, judges, priors, samples of the base, checkpoints."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from safemax.storage import atomic


def root() -> Path:
    """Return SAFEMAX_CACHE, or .safemax in the working directory."""
    return Path(os.environ.get("SAFEMAX_CACHE") or ".safemax")


def folder(kind: str) -> Path:
    """Return the folder for one kind of work, such as "priors"."""
    return root() / kind


class _Elsewhere:
    """Where a cache is filled from: on a worker's machine, from the driver's."""

    bring: Callable[[Path], None] | None = None


def bring_with(bring: Callable[[Path], None] | None) -> None:
    """Let this process ask for each file or folder, before it looks for it; None ends that."""
    _Elsewhere.bring = bring


def is_filled_from_elsewhere() -> bool:
    """Return whether this process asks another machine for what its cache lacks."""
    return _Elsewhere.bring is not None


def has(path: Path) -> bool:
    """Return whether the cache has a file or folder, which a worker with a cache of its own first asks its driver for."""
    if _Elsewhere.bring is not None:
        _Elsewhere.bring(path)
    return path.exists()


def key(facts: Mapping[str, Any]) -> str:
    """Return 16 hex digits that identify a piece of work by everything it depends on."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the sha256 (hex) of named tensors, such as a state dict: names, types, shapes and bytes."""
    sha = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        sha.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        sha.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()


def load_or_create(path: Path, create: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the tensors of a cached file, or create and save them; on the CPU either way."""
    cached = load_tensors(path)
    if cached is not None:
        return cached
    created = {name: tensor.detach().cpu().contiguous() for name, tensor in create().items()}
    save_tensors(path, created)
    return created


def load_tensors(path: Path) -> dict[str, Tensor] | None:
    """Return what `save_tensors` wrote; None if the file is missing or its content does not match its digest."""
    try:
        has(path)
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            digest = (file.metadata() or {}).get("digest")
    except (OSError, SafetensorError):
        return None
    return tensors if tensors_digest(tensors) == digest else None


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors and their digest as one safetensors file, atomically."""
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    atomic.write_bytes(path, to_bytes(contiguous, {"digest": tensors_digest(tensors)}))


def json_to_tensor(value: Any) -> Tensor:
    """Encode a JSON value as a uint8 tensor, so that it can be saved among tensors."""
    return torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8)


def tensor_to_json(tensor: Tensor) -> Any:
    """Decode the JSON value of a tensor made by `json_to_tensor`."""
    return json.loads(bytes(tensor.tolist()))
