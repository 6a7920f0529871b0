"""Where a model was read from, and how it is written again: as the pipeline of its kind opens it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import DDPMScheduler
from diffusers import __version__ as diffusers_version
from safetensors.torch import save_file

from safemax.data.class_names import plain
from safemax.diffusion.codec import Codec
from safemax.diffusion.condition import Labels, Prompts
from safemax.diffusion.networks import kinds
from safemax.errors import InputError

CLASSES = "classes.json"  # beside model_index.json, where a pipeline that opens the folder would warn of further keys
PROMPTS = "prompts.safetensors"  # the table of prompt embeddings
_SUFFIXES = (".json", ".safetensors", ".txt")  # of the files that are copied with a model


@dataclass(frozen=True)
class Home:
    """Where a model was read from, and what of it is written again as it was.

    Args:
        folder: the directory.
        index: its model_index.json.
        classes: class_names, labels and prompts, as its classes.json or, of a DDPMPipeline, its index states them.
        scheduler: its scheduler_config.json; {} where a schedule was chosen by name.
    """

    folder: Path
    index: dict[str, Any]
    classes: dict[str, Any]
    scheduler: dict[str, Any]

    def components(self) -> list[str]:
        """Return the names of the index's components that are folders, such as vae and text_encoder."""
        return [name for name in self.index if isinstance(self.index[name], list) and (self.folder / name).is_dir()]

    def synonyms(self) -> list[set[str]]:
        """Return all names of each label, from the index's id2label, such as {"tench", "tinca tinca"}; [] without them."""
        labels = self.index.get("id2label")
        if not isinstance(labels, dict):
            return []
        try:
            return [{plain(each) for each in str(labels[str(k)]).split(",")} for k in range(len(labels))]
        except KeyError as error:
            raise InputError(f"{self.folder}: id2label in model_index.json has no label {error}") from error


def labels_of(class_names: Sequence[str], home: Home | None, own: Sequence[str]) -> list[int]:
    """Return the label of each of these names among a model's own names and their synonyms.

    Raises:
        InputError: a name is that of no class, or of several.
    """
    synonyms = home.synonyms() if home else []
    known = [{plain(name), *further} for name, further in zip(own, synonyms or [set()] * len(own), strict=True)]
    labels = []
    for name in class_names:
        found = [k for k, names in enumerate(known) if plain(name) in names]
        exact = [k for k in found if plain(own[k]) == plain(name)]
        if len(exact or found) != 1:
            reason = f"{len(found)} classes" if found else "no class"
            raise InputError(f"{name!r} is the name of {reason} of the model; its names are in its model_index.json")
        labels.append((exact or found)[0])
    return labels


def write(
    folder: Path,
    denoiser: Any,
    schedule: DDPMScheduler,
    class_names: Sequence[str],
    *,
    codec: Codec | None = None,
    told_by: Labels | Prompts | None = None,
    home: Home | None = None,
) -> None:
    """Write a directory that the pipeline of the model's kind opens (DDPMPipeline, DiTPipeline, StableDiffusionPipeline).

    Class names and prompts lie in classes.json, those of a DDPMPipeline in its index. The parts that unlearning leaves alone
    (codec, text encoder, tokenizer, and the scheduler's file of a pipeline) are copied from where the model was read.

    Args:
        folder: to write to.
        denoiser: its weights are written as safetensors.
        schedule: of the forward process.
        class_names: in label order.
        codec: of the latents, if any.
        told_by: what tells the denoiser its classes.
        home: where the model was read from.

    Raises:
        InputError: the folder that a part is to be copied from is gone.
    """
    kind = kinds.of(denoiser)
    denoiser.save_pretrained(folder / kind.part, safe_serialization=True)
    index = {
        "_class_name": kind.pipeline,
        "_diffusers_version": diffusers_version,
        kind.part: [kind.library, kind.network.__name__],
        "scheduler": ["diffusers", "DDPMScheduler"],
    }
    if home is not None and home.index and home.scheduler and kind.pipeline != "DDPMPipeline":
        index = dict(home.index)
        _copy(home, folder, leave=(kind.part, "scheduler"))
        (folder / "scheduler").mkdir(exist_ok=True)
        _write_json(folder / "scheduler" / "scheduler_config.json", home.scheduler)
    else:
        schedule.save_pretrained(folder / "scheduler")
    if codec is not None and not (folder / "vae").exists():
        codec.vae.save_pretrained(folder / "vae", safe_serialization=True)
        index["vae"] = ["diffusers", "AutoencoderKL"]
    classes = {"class_names": list(class_names), **(told_by.stated() if told_by else {})}
    if isinstance(told_by, Prompts):
        save_file({"table": told_by.table.detach().cpu().contiguous()}, folder / PROMPTS)
    if kind.pipeline == "DDPMPipeline":
        index |= classes
    else:
        _write_json(folder / CLASSES, classes)
    _write_json(folder / "model_index.json", index)


def _copy(home: Home, folder: Path, leave: Sequence[str]) -> None:
    """Copy the components of a pipeline that are not written anew; no pickle is among what is copied."""
    if not home.folder.is_dir():
        raise InputError(
            f"{home.folder} is gone: the model was read from it, and the other parts must be copied from it"
        )
    for name in home.components():
        if name in leave:
            continue
        (folder / name).mkdir(exist_ok=True)
        for path in sorted((home.folder / name).iterdir()):
            if path.suffix in _SUFFIXES:
                shutil.copyfile(path, folder / name / path.name)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
