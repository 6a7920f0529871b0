"""The concepts of a text model: read before any work, with images that the model draws of those that have none."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from PIL import Image

from pipelines.cli.options import DataOptions, ModelOptions
from pipelines.cli.parser import Arguments
from pipelines.registry import model_versions
from safemax.data.batches import to_uint8
from safemax.data.pixels import suffixes
from safemax.diffusion import concepts as tables
from safemax.diffusion.concepts import Concepts
from safemax.diffusion.condition import Prompt
from safemax.diffusion.model import Diffusion
from safemax.diffusion.sampling import Sampler, sample
from safemax.errors import InputError
from safemax.storage import atomic, cache

DRAWN = Sampler("ddim", 50, 3.0, 0.0, False)  # of the images that the model draws of its own concepts
_TEST = 5  # every so many images is a test image


def data_of(arguments: Arguments) -> DataOptions:
    """Return the data of a command: those that it names, else the images of its concepts, drawn by the model if need be.

    They are a folder of images in the cache, `train/NAME/*.png` and `test/NAME/*.png`, made once.

    Raises:
        InputError: the table is wrong, or the model to draw from is not named.
    """
    options: ModelOptions = arguments["model"]
    data: DataOptions = arguments["data"]
    if options.concepts == "none" or "data" in arguments.given:
        return data
    if options.model == "base":
        raise InputError(
            "concepts without data need a model to draw their images: model = FOLDER or a hub id; or give the images as data"
        )
    table = tables.read(Path(options.concepts))
    missing = [name for name in table.names if name not in table.images]
    diffusion = _model(options, table) if missing else None
    facts = {
        "prompts": [asdict(each) for each in table.prompts],
        "images": {name: _digests(_found(name, path)) for name, path in table.images.items()},
        "count": options.concept_images,
        "sampler": str(DRAWN),
        "model": diffusion.identity() if diffusion else "",
    }
    folder = (cache.folder("concepts") / cache.key(facts) / Path(options.concepts).stem).absolute()
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        atomic.create_folder(folder, lambda temporary: _fill(temporary, table, diffusion, options.concept_images))
    print(f"the images of the concepts are in {folder}")
    return replace(data, data=str(folder))


def prompts_of(options: ModelOptions, names: Sequence[str]) -> tuple[Prompt, ...]:
    """Return the prompts of a data set's classes by the command's `concepts` or `prompt`, () where it has neither."""
    if options.concepts != "none":
        return tables.read(Path(options.concepts)).in_order_of(names)
    return tables.from_template(options.prompt, names).prompts if options.prompt else ()


def forget_of(arguments: Arguments) -> str:
    """Return what is to be forgotten: the table's classes of that role, unless the command says it."""
    options: ModelOptions = arguments["model"]
    if options.concepts == "none" or "forget" in arguments.given:
        return str(arguments["forget"].forget)
    return ",".join(tables.read(Path(options.concepts)).forget)


def _model(options: ModelOptions, table: Concepts) -> Diffusion:
    folder = model_versions.resolve(options.model)
    diffusion = Diffusion.load(folder, schedule=options.schedule, prompts=table.prompts)
    return diffusion.to("cuda" if torch.cuda.is_available() else "cpu")


def _fill(folder: Path, table: Concepts, diffusion: Diffusion | None, count: int) -> None:
    for k, name in enumerate(table.names):
        if "/" in name or name.startswith("."):
            raise InputError(f"{name!r} is not allowed as a name of a concept; it names a folder")
        for split in ("train", "test"):
            (folder / split / name).mkdir(parents=True)
        if name in table.images:
            _copy(table.images[name], folder, name)
        elif diffusion is not None:
            images = to_uint8(
                sample(diffusion, torch.full((count,), k), DRAWN.within(diffusion), seed=k, progress=True)
            )
            for i, image in enumerate(images):
                pixels = image.permute(1, 2, 0).numpy()
                Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(
                    _place(folder, name, i, ".png")
                )


def _copy(source: Path, folder: Path, name: str) -> None:
    for i, path in enumerate(_found(name, source)):
        shutil.copyfile(path, _place(folder, name, i, path.suffix))


def _found(name: str, source: Path) -> list[Path]:
    """Return a concept's images, in the order of their paths; InputError for too few."""
    files = sorted(path for path in source.rglob("*") if path.suffix.lower() in suffixes()) if source.is_dir() else []
    if len(files) < _TEST:
        raise InputError(f"{source} has {len(files)} images of {name!r}; at least {_TEST} are needed")
    return files


def _digests(files: Sequence[Path]) -> list[str]:
    """Return the digest of each file: images that were edited in place are other images, moved ones are the same."""
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]


def _place(folder: Path, name: str, i: int, suffix: str) -> Path:
    return folder / ("test" if i % _TEST == _TEST - 1 else "train") / name / f"{i:05d}{suffix}"
