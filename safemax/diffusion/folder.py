"""A model as a diffusers directory: what is read of it, what is refused, and how it is written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from diffusers import DDPMScheduler, UNet2DModel
from diffusers import __version__ as diffusers_version
from huggingface_hub import snapshot_download

from safemax.diffusion import schedules
from safemax.errors import InputError

_WEIGHTS = "diffusion_pytorch_model"


class Parts(NamedTuple):
    """What a directory holds; class_names is None where it states none."""

    denoiser: UNet2DModel
    schedule: DDPMScheduler
    class_names: tuple[str, ...] | None


def read(source: str, schedule: str = "auto") -> Parts:
    """Read a diffusers directory, or fetch one from the Hugging Face hub; only safetensors and JSON are ever opened.

    Args:
        source: a folder with unet/, or of a UNet alone, or a hub id.
        schedule: auto reads scheduler/; for a model without one, a name of `schedules.NAMED`.

    Raises:
        InputError: nothing is at source, a file is missing or damaged, or the model is not one of those supported.
    """
    folder = _locate(source)
    index = _read_json(folder / "model_index.json") if (folder / "model_index.json").exists() else {}
    unet = folder / "unet" if (folder / "unet").is_dir() else folder
    config = _read_json(unet / "config.json")
    _validate_config(source, config)
    _validate_size(source, folder, config)
    forward = _schedule(source, folder, schedule)
    _validate_files(source, unet)
    try:
        denoiser = UNet2DModel.from_pretrained(unet, use_safetensors=True, local_files_only=True)
    except Exception as error:  # diffusers and safetensors raise a dozen types for a damaged file
        raise InputError(f"{source} is not a readable model: {str(error).splitlines()[0]}") from error
    _validate_weights(source, denoiser)
    names = index.get("class_names")
    if names and not isinstance(names, list):
        raise InputError(f"{source}: class_names in model_index.json is {names!r}; it is a list of names")
    return Parts(denoiser, forward, tuple(map(str, names)) if names else None)


def write(folder: Path, denoiser: UNet2DModel, schedule: DDPMScheduler, class_names: Sequence[str]) -> None:
    """Write unet/ (safetensors, JSON), scheduler/ and model_index.json, which DiffusionPipeline opens as a DDPMPipeline.

    The class names lie in the index too, where diffusers ignores them.
    """
    denoiser.save_pretrained(folder / "unet", safe_serialization=True)
    schedule.save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "DDPMPipeline",
        "_diffusers_version": diffusers_version,
        "unet": ["diffusers", "UNet2DModel"],
        "scheduler": ["diffusers", "DDPMScheduler"],
        "class_names": list(class_names),
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def has_schedule(source: str) -> bool:
    """Return whether a model has a scheduler of its own."""
    return _schedule_file(_locate(source)).exists()


def _locate(source: str) -> Path:
    folder = Path(source)
    if folder.is_dir():
        return folder
    if folder.exists() or source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise InputError(
            f"model = {source} is not a folder; give a diffusers directory, a hub id (owner/name) or a models:/ address"
        )
    try:
        return Path(snapshot_download(source, allow_patterns=["*.json", "*.safetensors"]))
    except Exception as error:  # the hub client raises by transport: network, missing repository, gated, offline
        raise InputError(
            f"model = {source} is neither a folder nor a model that the hub gives: {str(error).splitlines()[0]}"
        ) from error


def _validate_config(source: str, config: dict[str, Any]) -> None:
    if config.get("_class_name") != "UNet2DModel":
        raise InputError(
            f"{source} holds a {config.get('_class_name')}; only class-conditional UNet2DModel can be unlearned"
        )
    kind = config.get("class_embed_type")
    if kind is not None:
        raise InputError(
            f"{source} cannot be unlearned by class: class_embed_type = {kind} is no table of labels; supported: "
            "class_embed_type = null with num_class_embeds"
        )
    if not config.get("num_class_embeds"):
        raise InputError(
            f"{source} cannot be unlearned by class: its denoiser has no class embedding (num_class_embeds)"
        )


def _validate_size(source: str, folder: Path, config: dict[str, Any]) -> None:
    """Raise InputError for a network or schedule that would take hours or all memory to build, such as one of 10^7 layers."""
    allowed = {
        "sample_size": 1024,
        "in_channels": 64,
        "out_channels": 64,
        "num_class_embeds": 100_000,
        "layers_per_block": 16,
    }
    values = [(name, config[name], most) for name, most in allowed.items() if config.get(name) is not None]
    channels = config.get("block_out_channels", [224])
    values.append(("number of block_out_channels", len(channels) if isinstance(channels, list) else None, 12))
    values += [("block_out_channels", each, 4096) for each in channels or []] if isinstance(channels, list) else []
    if (path := _schedule_file(folder)).exists():
        values.append(("num_train_timesteps", _read_json(path).get("num_train_timesteps", 1000), 100_000))
    for name, value, most in values:
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise InputError(
                f"{source} cannot be built: {name} = {str(value)[:60]} is not allowed; it is from 1 to {most}"
            )


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
        line = f'UNet2DModel.from_pretrained("{unet}", use_safetensors=False).save_pretrained("{unet}")'
        raise InputError(
            f"{source} has weights only as .bin, a pickle, which can run code and is not read; if you trust its source: "
            f"python -c 'from diffusers import UNet2DModel; {line}' converts it"
        )


def _validate_weights(source: str, denoiser: UNet2DModel) -> None:
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
