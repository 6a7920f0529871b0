"""A folder that holds what changed of a model: its other parts lie with earlier versions, named by place and digest.

A large model is mostly what training leaves alone: the autoencoder, the text encoder and tokenizer, and with adapters the
denoiser's own weights. `thin` takes out of a saved folder what is held elsewhere; `complete` makes it whole again, or fails.

    changed.json       which parts are elsewhere, and the digest that the denoiser's weights have when it is whole
    changes/NN         what a correction changed of the denoiser: tensors, or adapters to add, in the order of corrections
    base_denoiser/     the weights that the changes are of, unless they are elsewhere
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from safemax.diffusion.condition import Prompts
from safemax.diffusion.model import Diffusion
from safemax.diffusion.networks import kinds
from safemax.errors import InputError
from safemax.storage import cache, manifest

STATED, CHANGES, BASE = "changed.json", "changes", "base_denoiser"
RECORD = "changed"  # folder beside a completed one that keeps what it was completed from, for the next correction
# What neither sampling nor training reads: prompts are embedded once.
FOR_NEW_PROMPTS = ("text_encoder", "tokenizer", "safety_checker", "feature_extractor")
_A, _B = ".lora_A", ".lora_B"
_WORTH = 0.5  # share of the denoiser's bytes up to which its changes are kept instead of all of it
_READ = ("*.json", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model-*.safetensors")

Tensors = dict[str, Tensor]


class Place(NamedTuple):
    """Where a part lies: a logged model, and the folder in it."""

    model: str
    path: str


Fetch = Callable[[Place, Path], None]


def digest(folder: Path) -> str:
    """Return the sha256 (hex) of a part's files, by name and content."""
    return hashlib.sha256(json.dumps(manifest.entries(folder), sort_keys=True).encode()).hexdigest()


def thin(folder: Path, diffusion: Diffusion, known: Mapping[str, Place]) -> dict[str, str]:
    """Take out of a model's saved folder what is held elsewhere; return the digest of each part that it still holds.

    Models of images that are told labels are left whole: they have no other parts.

    Args:
        folder: what `diffusion.save` wrote.
        diffusion: the model.
        known: where parts are held, by digest.
    """
    if diffusion.codec is None and not isinstance(diffusion.condition, Prompts):
        return {}
    denoiser = _take_out_denoiser(folder, diffusion, known)
    held, elsewhere = {}, dict(denoiser.pop("elsewhere", {}))
    for part in sorted(path for path in folder.iterdir() if path.is_dir() and path.name not in ("scheduler", CHANGES)):
        content = digest(part)
        if content in known:
            elsewhere[part.name] = _entry(known[content], content)
            shutil.rmtree(part)
        else:
            held[part.name] = content
    if elsewhere or denoiser:
        stated = {"elsewhere": elsewhere, **({"denoiser": denoiser} if denoiser else {})}
        (folder / STATED).write_text(json.dumps(stated, indent=1, sort_keys=True) + "\n")
    return held


def complete(folder: Path, fetch: Fetch, *, leave: Collection[str] = ()) -> None:
    """Make a thin folder whole: what diffusers opens. What it was completed from is kept beside it. A whole one is left alone.

    Args:
        folder: a private copy of what `thin` left.
        fetch: puts the content of a place into a folder; raises InputError where it is gone.
        leave: parts that are not needed.

    Raises:
        InputError: a part is gone or is not what was registered.
    """
    if not (folder / STATED).exists():
        return
    stated = _read(folder)
    for name, entry in stated["elsewhere"].items():
        if name not in leave:
            place = Place(entry["model"], entry["path"])
            fetch(place, folder / name)
            _validate(folder / name, entry, place)
    if "denoiser" in stated:
        _put_back_denoiser(folder, stated["denoiser"])
    record = folder.parent / RECORD
    record.mkdir()
    for name in (STATED, CHANGES):
        if (folder / name).exists():
            shutil.move(folder / name, record / name)


def models_of(folder: Path) -> list[str]:
    """Return the logged models that hold a thin folder's other parts; [] of a whole one."""
    if not (folder / STATED).exists():
        return []
    return sorted({entry["model"] for entry in _read(folder)["elsewhere"].values()})


def add_adapter(weight: Tensor, b: Tensor, a: Tensor) -> Tensor:
    """Return weight + b a, one rank after the other, so that every machine gets the same bytes, which no matrix product does.

    Args:
        weight: (out, in).
        b: (out, rank).
        a: (rank, in).
    """
    for k in range(len(a)):
        weight = weight + b[:, k : k + 1] * a[k : k + 1]
    return weight


def _take_out_denoiser(folder: Path, diffusion: Diffusion, known: Mapping[str, Place]) -> dict[str, Any]:
    """Replace the saved denoiser by its changes where they are few; return what is stated of it, {} where it stays whole."""
    part, home = diffusion.kind.part, diffusion.home
    if home is None or not (home.folder / part).is_dir():
        return {}
    state = {name: value.detach().cpu() for name, value in diffusion.denoiser.state_dict().items()}
    network = diffusion.kind.network.from_pretrained(home.folder / part, use_safetensors=True, local_files_only=True)
    changed = _changed(network.float().state_dict(), state, diffusion.adapters)
    if _bytes(changed) > _WORTH * _bytes(state):
        return {}
    stated = {"part": part, "weights": diffusion.digest(), **_base(folder, home.folder, part, known)}
    (folder / CHANGES).mkdir(exist_ok=True)
    number = len(list((folder / CHANGES).iterdir()))
    save_file(changed, folder / CHANGES / f"{number:04d}.safetensors")
    shutil.rmtree(folder / part)
    return stated


def _base(folder: Path, home: Path, part: str, known: Mapping[str, Place]) -> dict[str, Any]:
    """Put the weights that the changes are of into a folder, or say where they are; a base that has changes itself gives them."""
    record = home.parent / RECORD
    earlier = _read(record).get("denoiser") if (record / STATED).exists() else None
    if earlier and earlier["base"] in known:
        shutil.copytree(record / CHANGES, folder / CHANGES)
        content = earlier["base"]
        return {"base": content, "elsewhere": {BASE: _entry(known[content], content)}}
    (folder / BASE).mkdir()
    for path in sorted(path for pattern in _READ for path in (home / part).glob(pattern)):
        shutil.copyfile(path, folder / BASE / path.name)
    return {"base": digest(folder / BASE)}


def _changed(before: Tensors, after: Tensors, adapters: Mapping[str, tuple[Tensor, Tensor]]) -> Tensors:
    """Return the tensors that differ, or their adapters where these alone make the difference, bit for bit."""
    changed: Tensors = {}
    for name, value in after.items():
        if torch.equal(value, before[name]):
            continue
        if name in adapters and torch.equal(add_adapter(before[name], *(each.cpu() for each in adapters[name])), value):
            changed[name + _B], changed[name + _A] = (each.detach().cpu().contiguous() for each in adapters[name])
        else:
            changed[name] = value.contiguous()
    return changed


def _put_back_denoiser(folder: Path, stated: Mapping[str, Any]) -> None:
    config = json.loads((folder / BASE / "config.json").read_text())
    network = kinds.named(str(folder), config).network.from_pretrained(
        folder / BASE, use_safetensors=True, local_files_only=True
    )
    network.float()
    state = network.state_dict()
    for path in sorted((folder / CHANGES).iterdir()):
        _apply(path, state)
    if cache.tensors_digest(state) != stated["weights"]:
        raise InputError(f"{folder} is not what was registered: its denoiser's weights do not match their digest")
    network.save_pretrained(folder / stated["part"], safe_serialization=True)
    shutil.rmtree(folder / BASE)


def _apply(path: Path, state: Tensors) -> None:
    """Change a denoiser's tensors in place as a file of changes says."""
    try:
        changed = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} is missing or damaged") from error
    for name, value in changed.items():
        if name.endswith(_B):
            target = name.removesuffix(_B)
            state[target].copy_(add_adapter(state[target], value, changed[target + _A]))
        elif not name.endswith(_A):
            state[name].copy_(value)


def _validate(part: Path, entry: Mapping[str, str], place: Place) -> None:
    if digest(part) != entry["digest"]:
        raise InputError(f"{part.name} in the logged model {place.model} has changed since the version was registered")


def _read(folder: Path) -> dict[str, Any]:
    stated: dict[str, Any] = json.loads((folder / STATED).read_text())
    for name in stated["elsewhere"]:
        if not re.fullmatch(r"[A-Za-z0-9_]+", name):
            raise InputError(f"{folder / STATED} is damaged: {name[:60]!r} is not the name of a part")
    return stated


def _entry(place: Place, content: str) -> dict[str, str]:
    return {**place._asdict(), "digest": content}


def _bytes(tensors: Tensors) -> int:
    return sum(each.numel() * each.element_size() for each in tensors.values())
