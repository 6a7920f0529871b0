"""Convert the state dict of an official network (SA's and SalUn's UNet, DiT, EDM) into the base that corrections start from.

    mlflow run . -e convert -P state_dict=ckpt.safetensors -P data=cifar10
    mlflow run . -e convert -P state_dict=dit.pt -P open_pickle=true -P vae=FOLDER -P data=FOLDER -P size=256
    python -m pipelines.convert --bin=FOLDER --output=NEW_FOLDER        (a diffusers folder whose weights are .bin files)

Which network it is, the names of the tensors tell. DiT's .pt files hold tensors alone; `open_pickle` asks for torch's loader that
builds nothing else (weights_only=True) and refuses a file with anything else. Other official checkpoints are pickles that can run
code, so this program does not read them. On a machine that trusts one of SA or SalUn:
states = torch.load("ckpt.pth", map_location="cpu"); safetensors.torch.save_file(states[-1], "ckpt.safetensors")
(the last entry is the moving average; states[0] are the raw weights, where "module." before each name may stay).

A folder of diffusers with .bin files, which older releases wrote, is copied with safetensors in their place. They are pickles
too; `bin` asks for torch's loader that builds tensors alone (weights_only=True) and refuses a file with anything else.

The converted network is checked by its denoising loss on real test images, and, where --reference gives the official
network's outputs on some inputs, by comparison with those.
"""

from __future__ import annotations

if __name__ == "__main__":  # first: help and refusals need none of the imports below
    from pipelines.cli import console

    console.run("convert")

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from pipelines import tracking
from pipelines.cli.options import DataOptions, product_name
from pipelines.cli.parser import parse
from pipelines.correction import recorded_data
from pipelines.engine.signals import die_with_parent, stop_on_signals
from pipelines.registry import registration
from safemax.data.batches import to_float
from safemax.data.dataset import Dataset
from safemax.diffusion.convert import checkpoint
from safemax.diffusion.folder import numbered
from safemax.diffusion.model import Diffusion
from safemax.diffusion.sampling import FAST, sample
from safemax.errors import InputError, note
from safemax.knobs import check, knob
from safemax.reports.images_and_tables import grid
from safemax.storage import atomic
from safemax.storage.pickled import with_safetensors

TOLERANCE = 1e-4
UNTRAINED = 0.5  # a denoising loss above this brings a warning; predicting eps = 0 gives 1
CHECKED = 64  # test images of the denoising loss
_REFERENCE = ("x_t", "t", "c", "eps")


@dataclass(frozen=True)
class ConvertOptions:
    """What to convert."""

    state_dict: str = knob("", "safetensors file of the official network's state dict")
    open_pickle: bool = knob(
        False, "open state_dict with torch.load(weights_only=True), for a pickle of tensors alone such as DiT's .pt"
    )
    vae: str = knob("none", "folder of the AutoencoderKL of a DiT's latents; none for a DiT of images")
    heads: int = knob(
        0,
        "attention heads of a DiT, which its tensors do not show; 0 takes the published number for its width",
        bounds=(0, 1024),
    )
    labels: str = knob(
        "none",
        "JSON file of all class names of the network, in label order or as id2label, if the data have only some; needs output",
    )
    reference: str = knob(
        "none", "safetensors file of x_t, t, c (K is the null label) and the official network's eps for them"
    )
    bin: str = knob(
        "none", "diffusers folder with weights as .bin files (pickles), to be opened with torch.load(weights_only=True)"
    )
    output: str = knob("none", "folder to write the model to, instead of registering it; bin needs one")
    name: str = knob("auto", "registered model and experiment; auto is DATA-ddpm")

    def __post_init__(self) -> None:
        check(self)

    def validate(self) -> None:
        """Raise InputError where there is nothing to convert or no place for the result; before any work."""
        if self.bin != "none" and (self.state_dict or self.output == "none"):
            raise InputError("bin needs output, a new folder, and is given without state_dict")
        if self.bin != "none" and not Path(self.bin).is_dir():
            raise InputError(f"bin = {self.bin} is not a folder")
        if self.bin == "none" and not self.state_dict:
            raise InputError("state_dict has no value; it is a safetensors file of the official network's state dict")
        if self.labels != "none" and self.output == "none":
            raise InputError(
                f"labels = {self.labels} needs output, a new folder: the data have only some of the classes"
            )
        if self.output != "none" and Path(self.output).exists():
            raise InputError(f"output = {self.output} already exists; name a new folder")


PARAMETERS: dict[str, type] = {"conversion": ConvertOptions, "data": DataOptions}


def largest_difference(diffusion: Diffusion, reference: str) -> float:
    """Return the largest absolute difference between a model's outputs and the official network's.

    Args:
        diffusion: the converted model.
        reference: a safetensors file with x_t (N, C, H, W), t (N,), c (N,) and eps (N, C, H, W).

    Raises:
        InputError: the file does not hold such tensors, or the difference is larger than TOLERANCE.
    """
    try:
        tensors = load_file(reference)
    except (OSError, SafetensorError) as error:
        raise InputError(f"reference = {reference} is not a safetensors file: {str(error).splitlines()[0]}") from error
    missing = [name for name in _REFERENCE if name not in tensors]
    if missing:
        raise InputError(f"reference = {reference} lacks {', '.join(missing)}; it holds {', '.join(_REFERENCE)}")
    _check_tensors(diffusion, tensors, reference)
    with torch.no_grad():
        eps = diffusion(tensors["x_t"].float(), tensors["t"].long(), tensors["c"].long())
    difference = (eps - tensors["eps"].float()).abs().max().item()
    if not difference <= TOLERANCE:
        raise InputError(
            f"reference = {reference}: the outputs differ by {difference:.2g}; up to {TOLERANCE:g} is allowed"
        )
    return difference


def _check_tensors(diffusion: Diffusion, tensors: dict[str, torch.Tensor], reference: str) -> None:
    """Raise InputError for a shape, a time step or a label that does not fit the model."""
    n, labels = len(tensors["x_t"]), diffusion.num_classes + diffusion.has_null
    images, rows = (n, *diffusion.image_shape), (n,)
    for name, shape in {"x_t": images, "t": rows, "c": rows, "eps": images}.items():
        if tuple(tensors[name].shape) != shape:
            raise InputError(f"reference = {reference}: {name} has the shape {tuple(tensors[name].shape)}, not {shape}")
    for name, bound in {"t": diffusion.T, "c": labels}.items():
        if n and not (int(tensors[name].min()) >= 0 and int(tensors[name].max()) < bound):
            raise InputError(f"reference = {reference}: {name} has values outside 0 to {bound - 1}")


def denoising_loss(diffusion: Diffusion, dataset: Dataset) -> float:
    """Return the mean denoising loss on CHECKED test images under fixed noise: a few hundredths if trained, else about 1."""
    rows = slice(None, None, max(1, len(dataset.test.labels) // CHECKED))
    x0, c = diffusion.encode(to_float(dataset.test.images[rows])), dataset.test.labels[rows]
    generator = torch.Generator().manual_seed(0)
    t = ((torch.arange(len(c)) + 0.5) * diffusion.T / len(c)).long()[torch.randperm(len(c), generator=generator)]
    eps = torch.randn(x0.shape, generator=generator)
    with torch.no_grad():
        return (diffusion(diffusion.diffuse(x0, t, eps), t, c) - eps).square().mean().item()


def convert(argv: Sequence[str]) -> None:
    """Convert as the command line says."""
    arguments = parse("python -m pipelines.convert", __doc__ or "", PARAMETERS, argv)
    options: ConvertOptions = arguments["conversion"]
    options.validate()
    if options.bin != "none":
        _convert_pickles(Path(options.bin), Path(options.output).absolute())
        return
    stop = stop_on_signals()
    die_with_parent()
    dataset = arguments["data"].load()
    whole = _read(options, dataset)
    diffusion = whole if options.labels == "none" else whole.for_classes(dataset.class_names).eval()
    if diffusion.image_shape != dataset.image_shape:
        raise InputError(
            f"state_dict = {options.state_dict} makes {diffusion.image_shape} images, the data are {dataset.image_shape}"
        )
    if options.output == "none":
        registration.refuse_other_shape(product_name(options.name, dataset.name), diffusion)
    with stop.interruptible():
        checks = _checks(diffusion, dataset, options)
        summary = ", ".join(
            f"{key.removeprefix('convert/').replace('_', ' ')} {value:.3g}" for key, value in checks.items()
        )
        if options.output != "none":
            whole.save(Path(options.output))
            print(f"wrote {options.output}; {summary}")
            return
        address = _register(diffusion, dataset, options, checks, summary, arguments.record())
    print(f"registered {address} with the alias base; {summary}")


def _read(options: ConvertOptions, dataset: Dataset) -> Diffusion:
    """Return the whole network as a model; a line says where a pickle was opened."""
    names = dataset.class_names if options.labels == "none" else _names(Path(options.labels))
    vae = None if options.vae == "none" else Path(options.vae)
    diffusion = checkpoint.convert(
        Path(options.state_dict), names, size=dataset.image_shape[-1],
        open_pickle=options.open_pickle, heads=options.heads, vae=vae,
    )  # fmt: skip
    if options.open_pickle:
        print(f"opened by torch.load(weights_only=True), which builds tensors alone: {options.state_dict}")
    return diffusion


def _names(path: Path) -> tuple[str, ...]:
    """Return class names from a JSON list or id2label, each by its first synonym."""
    try:
        content = json.loads(path.read_text())
        listed = [content[str(k)] for k in range(len(content))] if isinstance(content, dict) else list(content)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"labels = {path} is no JSON list of names and no id2label of labels from 0") from error
    return numbered([str(each).split(",")[0].strip() for each in listed])


def _convert_pickles(source: Path, target: Path) -> None:
    opened: list[str] = []
    target.parent.mkdir(parents=True, exist_ok=True)
    atomic.create_folder(target, lambda folder: opened.extend(with_safetensors(source, folder)))
    print(f"opened by torch.load(weights_only=True), which builds tensors alone: {', '.join(opened)}")
    print(f"wrote {target}, with safetensors in their place")


def _checks(diffusion: Diffusion, dataset: Dataset, options: ConvertOptions) -> dict[str, float]:
    """Return what the converted network was checked by, by metric key; InputError where it cannot be right."""
    loss = denoising_loss(diffusion, dataset)
    if not math.isfinite(loss):
        raise InputError(f"state_dict = {options.state_dict} gives a network whose denoising loss is {loss:g}")
    if loss > UNTRAINED:
        note(f"the denoising loss on {dataset.name} is {loss:.2g}: this network hardly denoises")
    checks = {"convert/denoising_loss": loss}
    if options.reference != "none":
        checks["convert/largest_difference"] = largest_difference(diffusion, options.reference)
    return checks


def _register(
    diffusion: Diffusion,
    dataset: Dataset,
    options: ConvertOptions,
    checks: dict[str, float],
    summary: str,
    record: Mapping[str, Mapping[str, Any]],
) -> str:
    name = product_name(options.name, dataset.name)
    source = hashlib.sha256(Path(options.state_dict).read_bytes()).hexdigest()
    params = {"convert.state_dict": options.state_dict, "convert.sha256": source, "data.name": dataset.name}
    with tracking.run(f"convert-{dataset.name}", experiment=name, params=params, tags={"kind": "base"}) as run:
        run.parameters(record)
        labels = torch.arange(dataset.num_classes)
        images = sample(diffusion, labels, FAST.within(diffusion), seed=0, progress=True)
        picture = run.picture(grid(images, len(labels)), "samples/base")
        note = (
            f"The official network of {Path(options.state_dict).name}, converted; {summary} on {dataset.name}."
            f"\n\n{picture}"
        )
        run.note(note)
        evidence = {"forgotten": [], "metrics": checks, "converted_from": source, "data_digest": dataset.digest,
                    "model_digest": diffusion.digest()}  # fmt: skip
        tags = {"kind": "base", "data.digest": dataset.digest, **recorded_data.tag_of(record)}
        version = registration.register(
            diffusion, name, run_id=run.id, evidence=evidence, tags=tags, description=note, alias="base"
        )
    return f"models:/{name}/{version}"
