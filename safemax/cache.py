"""Where work that later runs can use again is kept: decoded data, judges, priors, base samples, checkpoints."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


def folder(kind: str) -> Path:
    """Return the folder of one kind of work, below SAFEMAX_CACHE or .safemax in the working directory."""
    return Path(os.environ.get("SAFEMAX_CACHE", ".safemax")) / kind


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
    """Return what a safetensors file holds, or what `make` returns, which is kept there; all on the CPU.

    A file that does not hold what was written is made anew.
    """
    found = _verified(path)
    if found is None:
        found = {name: tensor.detach().cpu().contiguous() for name, tensor in make().items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        save_file(found, temporary, {"digest": weights_digest(found)})
        temporary.replace(path)
    return found


def _verified(path: Path) -> dict[str, Tensor] | None:
    """Read a file of `tensors`; None where there is none or where it does not hold what was written."""
    try:
        with safe_open(path, "pt") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            digest = (file.metadata() or {}).get("digest")
    except (OSError, SafetensorError):
        return None
    return found if weights_digest(found) == digest else None


def write_text(path: Path, text: str) -> None:
    """Write a text file that is either whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


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
