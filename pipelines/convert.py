"""Turn the state dict of the official SA/SalUn network into a model of ours, as the base that corrections start from.

    mlflow run . -e convert -P state_dict=ckpt.safetensors -P data=cifar10

The official checkpoints are pickles, which can run code and are not read here. On a machine that trusts one:
states = torch.load("ckpt.pth", map_location="cpu"); safetensors.torch.save_file(states[-1], "ckpt.safetensors")
(the last entry is the moving average; states[0] are the raw weights, where "module." before each name may stay).

The outputs are checked by the denoising loss on real test images, and, where --reference gives the official network's
outputs on some inputs, by comparison with those.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from pipelines import tracking
from pipelines.cli.options import DataOptions, product
from pipelines.cli.parser import main, parse
from pipelines.engine.signals import die_with_parent, stop_on_sigterm
from pipelines.registry import registration
from safemax.data.batches import to_float
from safemax.data.dataset import Dataset
from safemax.diffusion.convert_official import convert
from safemax.diffusion.model import Diffusion
from safemax.diffusion.sampling import FAST, sample
from safemax.errors import InputError
from safemax.knobs import check, knob
from safemax.reports.images_and_tables import grid

TOLERANCE = 1e-4
UNTRAINED = 0.5  # a denoising loss beyond which a warning is due; 1 predicts nothing
CHECKED = 64  # test images of the denoising loss
_REFERENCE = ("x_t", "t", "c", "eps")


@dataclass(frozen=True)
class ConvertOptions:
    """What to convert."""

    state_dict: str = knob("", "safetensors file of the official network's state dict")
    reference: str = knob(
        "none", "safetensors file of x_t, t, c (K is the null label) and the official network's eps on them"
    )
    output: str = knob("none", "folder that the model is written to, in place of being registered")
    name: str = knob("auto", "registered model and experiment; auto is DATA-ddpm")

    def __post_init__(self) -> None:
        check(self)


PARAMETERS: dict[str, type] = {"conversion": ConvertOptions, "data": DataOptions}


def largest_difference(model: Diffusion, reference: str) -> float:
    """Return the largest difference between a model's outputs and an official network's; InputError beyond TOLERANCE.

    Args:
        model: the converted model.
        reference: a safetensors file with x_t (N, C, H, W), t (N,), c (N,) and eps (N, C, H, W).
    """
    try:
        tensors = load_file(reference)
    except (OSError, SafetensorError) as error:
        raise InputError(f"reference = {reference} is not a safetensors file: {str(error).splitlines()[0]}") from error
    missing = [name for name in _REFERENCE if name not in tensors]
    if missing:
        raise InputError(f"reference = {reference} lacks {', '.join(missing)}; it holds {', '.join(_REFERENCE)}")
    _refuse_shapes(model, tensors, reference)
    with torch.no_grad():
        eps = model(tensors["x_t"].float(), tensors["t"].long(), tensors["c"].long())
    difference = (eps - tensors["eps"].float()).abs().max().item()
    if not difference <= TOLERANCE:
        raise InputError(
            f"reference = {reference}: the outputs differ by {difference:.2g}; up to {TOLERANCE:g} is allowed"
        )
    return difference


def _refuse_shapes(model: Diffusion, tensors: dict[str, torch.Tensor], reference: str) -> None:
    n, labels = len(tensors["x_t"]), model.num_classes + model.has_null
    images, rows = (n, *model.image_shape), (n,)
    for name, shape in {"x_t": images, "t": rows, "c": rows, "eps": images}.items():
        if tuple(tensors[name].shape) != shape:
            raise InputError(f"reference = {reference}: {name} has the shape {tuple(tensors[name].shape)}, not {shape}")
    for name, bound in {"t": model.T, "c": labels}.items():
        if n and not (int(tensors[name].min()) >= 0 and int(tensors[name].max()) < bound):
            raise InputError(f"reference = {reference}: {name} holds values beyond 0 to {bound - 1}")


def denoising_loss(model: Diffusion, dataset: Dataset) -> float:
    """Return the mean loss on test images, under fixed noise: a few hundredths where trained, 1 where not."""
    rows = slice(None, None, max(1, len(dataset.test.labels) // CHECKED))
    x0, c = to_float(dataset.test.images[rows]), dataset.test.labels[rows]
    generator = torch.Generator().manual_seed(0)
    t = ((torch.arange(len(c)) + 0.5) * model.T / len(c)).long()[torch.randperm(len(c), generator=generator)]
    eps = torch.randn(x0.shape, generator=generator)
    with torch.no_grad():
        return (model(model.diffuse(x0, t, eps), t, c) - eps).square().mean().item()


def convert_checkpoint(argv: Sequence[str]) -> None:
    """Convert by the command line's parameters."""
    chosen = parse("python -m pipelines.convert", __doc__ or "", PARAMETERS, argv)
    asked: ConvertOptions = chosen["conversion"]
    if not asked.state_dict:
        raise InputError("state_dict has no value; it is a safetensors file of the official network's state dict")
    if asked.output != "none" and Path(asked.output).exists():
        raise InputError(f"output = {asked.output} is there already; name a folder that is not")
    stop = stop_on_sigterm()
    die_with_parent()
    dataset = chosen["data"].load()
    model = convert(asked.state_dict, dataset.class_names, size=dataset.image_shape[-1])
    if model.image_shape != dataset.image_shape:
        raise InputError(
            f"state_dict = {asked.state_dict} draws {model.image_shape} images, the data are {dataset.image_shape}"
        )
    with stop.interruptible():
        loss = denoising_loss(model, dataset)
        if not math.isfinite(loss):
            raise InputError(f"state_dict = {asked.state_dict} gives a network whose denoising loss is {loss:g}")
        if loss > UNTRAINED:
            warnings.warn(
                f"the denoising loss on {dataset.name} is {loss:.2g}: this network hardly denoises", stacklevel=2
            )
        facts = {"convert/denoising_loss": loss}
        if asked.reference != "none":
            facts["convert/largest_difference"] = largest_difference(model, asked.reference)
        checked = ", ".join(
            f"{key.removeprefix('convert/').replace('_', ' ')} {value:.3g}" for key, value in facts.items()
        )
        if asked.output != "none":
            model.save(Path(asked.output))
            print(f"wrote {asked.output}; {checked}")
            return
        address = _register(model, dataset, asked, facts, checked)
    print(f"registered {address} with the alias base; {checked}")


def _register(model: Diffusion, dataset: Dataset, asked: ConvertOptions, facts: dict[str, float], checked: str) -> str:
    name = product(asked.name, dataset.name)
    source = hashlib.sha256(Path(asked.state_dict).read_bytes()).hexdigest()
    params = {"convert.state_dict": asked.state_dict, "convert.sha256": source, "data.name": dataset.name}
    with tracking.run(f"convert-{dataset.name}", experiment=name, params=params, tags={"kind": "base"}) as run:
        run.log(facts)
        labels = torch.arange(dataset.num_classes)
        picture = run.picture(grid(sample(model, labels, FAST, seed=0, progress=True), len(labels)), "samples/base")
        note = f"The official network of {Path(asked.state_dict).name}, converted; {checked} on {dataset.name}.\n\n{picture}"
        run.note(note)
        evidence = {"forgotten": [], "metrics": facts, "converted_from": source, "data_digest": dataset.digest,
                    "model_digest": model.digest()}  # fmt: skip
        tags = {"kind": "base", "data.digest": dataset.digest}
        version = registration.register(
            model, name, run_id=run.id, evidence=evidence, tags=tags, description=note, alias="base"
        )
    return f"models:/{name}/{version}"


if __name__ == "__main__":
    main(convert_checkpoint)
