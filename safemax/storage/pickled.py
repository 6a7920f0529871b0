"""The one file that opens pickles: weights saved as .bin by older releases, by a loader that refuses all but tensors.

`torch.load(weights_only=True)` builds tensors and plain containers and runs no code of the file; a fault in it would be one
in torch. So it is used where the user asks for it, never to load a model.
"""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from safemax.errors import InputError

_WEIGHTS = {"pytorch_model": "model"}  # how transformers calls its files: as .bin, and as safetensors
_KEPT = (".json", ".safetensors", ".txt")


def with_safetensors(source: Path, target: Path) -> list[str]:
    """Copy a diffusers directory, its .bin files as safetensors; return the names of the pickles that were opened.

    Weights that exist as safetensors too are copied from these, and their pickle is not opened.

    Args:
        source: the directory.
        target: a new one.

    Raises:
        InputError: there are no pickles, one holds more than tensors, or the weights are split over several files.
    """
    pickles = [path for path in sorted(source.rglob("*.bin")) if not _has_twin(path)]
    if not pickles:
        raise InputError(f"{source} has no weights that exist only as .bin")
    for index in source.rglob("*.bin.index.json"):
        raise InputError(f"{index.relative_to(source)} splits its weights over several files, which is not supported")
    for path in sorted(source.rglob("*")):
        if path.suffix in _KEPT:
            _place(target, path.relative_to(source)).write_bytes(path.read_bytes())
    for path in pickles:
        relative = path.relative_to(source)
        save_file(tensors(path), _place(target, _renamed(relative)), {"format": "pt"})
    return [str(path.relative_to(source)) for path in pickles]


def tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a pickle by name; InputError where it holds anything else, or is damaged.

    Args:
        path: a state dict as torch.save writes it.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = "it holds more than tensors" if isinstance(error, pickle.UnpicklingError) else "it is damaged"
        raise InputError(f"{path} is not opened: {reason}") from error
    if not isinstance(content, dict) or not all(isinstance(each, Tensor) for each in content.values()):
        raise InputError(f"{path} holds no state dict, which is names and tensors alone")
    return {name: tensor.clone().contiguous() for name, tensor in content.items()}


def _has_twin(path: Path) -> bool:
    return path.with_name(_renamed(Path(path.name)).name).exists()


def _renamed(relative: Path) -> Path:
    name, _, variant = relative.stem.partition(".")
    stem = ".".join([_WEIGHTS.get(name, name), *([variant] if variant else [])])
    return relative.with_name(f"{stem}.safetensors")


def _place(target: Path, relative: Path) -> Path:
    path = target / relative
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
