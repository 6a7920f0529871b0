"""A model as a diffusers directory: what is read of it, and what is refused."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler
from safetensors import SafetensorError
from safetensors.torch import load_file

from safemax.diffusion import condition, schedules
from safemax.diffusion.codec import Codec
from safemax.diffusion.condition import Labels, Prompt, Prompts
from safemax.diffusion.home import CLASSES, PROMPTS, Home
from safemax.diffusion.networks import kinds
from safemax.diffusion.networks.kinds import Kind
from safemax.errors import InputError
from safemax.storage import hub

_WEIGHTS = "diffusion_pytorch_model"
# Of a hub's repository: no single-file checkpoint of the whole pipeline, such as lies beside the folders of Stable Diffusion.
_DOWNLOADED = ["*.json", "*.txt", "*/*.safetensors", f"{_WEIGHTS}*.safetensors"]


@dataclass(frozen=True)
class Parts:
    """What a directory holds; class_names are numbers where it states none, codec is None where images are not encoded."""

    denoiser: Any
    schedule: DDPMScheduler
    class_names: tuple[str, ...]
    names_are_stated: bool
    codec: Codec | None
    condition: Labels | Prompts
    home: Home


def read(source: str, schedule: str = "auto", prompts: Sequence[Prompt] = ()) -> Parts:
    """Read a diffusers directory, or fetch one from the Hugging Face hub; only safetensors, JSON and text are ever opened.

    Args:
        source: a folder with unet/ or transformer/, or of a denoiser alone, or a hub id.
        schedule: auto reads scheduler/; for a model without one, a name of `schedules.NAMED`.
        prompts: for a model that is told its classes by text and has no prompts of its own.

    Raises:
        InputError: nothing is at source, a file is missing or damaged, or the model is not one of those supported.
    """
    folder = locate(source)
    index = _read_json(folder / "model_index.json") if (folder / "model_index.json").exists() else {}
    part = next((folder / name for name in ("transformer", "unet") if (folder / name).is_dir()), folder)
    config = _read_json(part / "config.json")
    kind = kinds.named(source, config)
    stated = _read_json(_schedule_file(folder)) if _schedule_file(folder).exists() else {}
    kinds.validate_size(source, config, kind, stated.get("num_train_timesteps", 1000))
    forward = _schedule(source, folder, schedule)
    classes = _read_json(folder / CLASSES) if (folder / CLASSES).exists() else index
    home = Home(folder, index, classes, stated)
    told_by = _condition(source, home, kind, prompts)
    names = told_by.names if isinstance(told_by, Prompts) else _class_names(source, home)
    denoiser = _denoiser(source, part, kind)
    numbers = tuple(str(k) for k in range(kinds.labels(denoiser, told_by) - 1))
    codec = _codec(source, folder, kind, config)
    return Parts(denoiser, forward, names or numbers, names is not None, codec, told_by, home)


def _denoiser(source: str, part: Path, kind: Kind) -> Any:
    _validate_files(source, part)
    try:
        denoiser = kind.network.from_pretrained(part, use_safetensors=True, local_files_only=True)
    except Exception as error:  # diffusers and safetensors raise a dozen types for a damaged file
        raise InputError(f"{source} is not a readable model: {str(error).splitlines()[0]}") from error
    _validate_weights(source, denoiser)
    return denoiser.float()


def _codec(source: str, folder: Path, kind: Kind, config: dict[str, Any]) -> Codec | None:
    if (folder / "vqvae").is_dir():
        raise InputError(f"{source} has a VQModel for its latents; supported: AutoencoderKL, in vae/")
    if not (folder / "vae").is_dir():
        if isinstance(kind, kinds.TextUNet):
            raise InputError(f"{source} has no vae/, which its latents need")
        return None
    codec = Codec.load(folder / "vae")
    channels = config.get("in_channels", 4)
    if codec.latent_channels != channels:
        raise InputError(
            f"{source}: its vae has latents of {codec.latent_channels} channels, its denoiser takes {channels}"
        )
    return codec


def _condition(source: str, home: Home, kind: Kind, prompts: Sequence[Prompt]) -> Labels | Prompts:
    if not isinstance(kind, kinds.TextUNet):
        if prompts:
            raise InputError(f"{source} takes labels, not prompts; leave out concepts and prompt")
        rows = home.classes.get("labels")
        return Labels(None if rows is None else [int(row) for row in rows])
    if not prompts and "prompts" not in home.classes:
        raise InputError(
            f"{source} takes prompts: concepts = FILE.csv names its classes and their prompts, or prompt = "
            "'a photo of a {}' makes one for each class name of the data"
        )
    if prompts:
        return condition.embed(home.folder, prompts)
    own = condition.from_json(source, home.classes["prompts"])
    try:
        return Prompts(own, load_file(home.folder / PROMPTS)["table"])
    except (OSError, KeyError, SafetensorError) as error:
        raise InputError(f"{source}: {PROMPTS} is missing or damaged") from error


def _class_names(source: str, home: Home) -> tuple[str, ...] | None:
    """Return the class names that the index states: ours, or those of id2label, each by its first synonym."""
    names = home.classes.get("class_names")
    if names and not isinstance(names, list):
        raise InputError(f"{source}: class_names is {names!r}; it must be a list of names")
    if names:
        return tuple(map(str, names))
    if not home.synonyms():
        return None
    labels = home.index["id2label"]
    return numbered([str(labels[str(k)]).split(",")[0].strip() for k in range(len(labels))])


def numbered(names: Sequence[str]) -> tuple[str, ...]:
    """Return class names, those that come twice with their label, such as crane (134)."""
    counts = Counter(names)
    return tuple(name if counts[name] == 1 else f"{name} ({k})" for k, name in enumerate(names))


def has_schedule(source: str) -> bool:
    """Return whether a model has a scheduler of its own."""
    return _schedule_file(locate(source)).exists()


def locate(source: str) -> Path:
    """Return the folder of a model by path or hub id, downloaded unless the hub's cache has it; InputError for neither."""
    folder = Path(source)
    if folder.is_dir():
        return folder
    if not hub.is_id(source):
        raise InputError(
            f"model = {source} is not a folder; give a diffusers directory, a hub id (owner/name) or a models:/ address"
        )
    return hub.fetch("model", source, _DOWNLOADED)


def _schedule_file(folder: Path) -> Path:
    return (folder / "scheduler" if (folder / "scheduler").is_dir() else folder) / "scheduler_config.json"


def _schedule(source: str, folder: Path, name: str) -> DDPMScheduler:
    path = _schedule_file(folder)
    if name != "auto":
        if path.exists():
            raise InputError(f"schedule = {name} is not allowed: {source} has a scheduler of its own; leave it at auto")
        return schedules.named(name)
    if not path.exists():
        raise InputError(
            f"{source} has no scheduler/scheduler_config.json; schedule = {', '.join(schedules.NAMED)} says how its "
            "training noised the images (linear is DDPM's)"
        )
    return schedules.read(source, _read_json(path))


def _validate_files(source: str, unet: Path) -> None:
    """Raise InputError, with the way out, where the weights are in no form that is read."""
    if any(unet.glob(f"{_WEIGHTS}*.safetensors")) and not (unet / f"{_WEIGHTS}.safetensors").exists():
        variants = sorted(path.name for path in unet.glob(f"{_WEIGHTS}.*.safetensors"))
        if variants and not any(unet.glob("*.index.json")):
            raise InputError(
                f"{source} has weights only as {variants[0]}; rename the file to {_WEIGHTS}.safetensors to use them"
            )
    if any(unet.glob("*.bin")) and not any(unet.glob("*.safetensors")):
        raise InputError(
            f"{source} has weights only as .bin, a pickle, which can run code and is not read; if you trust its source: "
            f"python -m pipelines.convert --bin={source} --output=NEW_FOLDER writes them as safetensors"
        )


def _validate_weights(source: str, denoiser: torch.nn.Module) -> None:
    for name, weight in denoiser.named_parameters():
        if weight.is_meta:
            raise InputError(f"{source} is incomplete: its file has no weights {name}")
        if not weight.isfinite().all():
            raise InputError(f"{source} cannot be used: its weights {name} are not finite")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is missing or is not JSON: this is not a diffusers directory") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a JSON object: this is not a diffusers directory")
    return content
