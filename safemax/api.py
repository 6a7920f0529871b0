"""What a notebook needs, in seven functions: data, model, method, unlearning, sampling, evaluation.

Each is a thin call of the library that the commands use too: the same arguments and seed give the same weights.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from safemax.data import sources
from safemax.data.batches import derive_seed
from safemax.data.class_names import parse_classes
from safemax.data.class_split import ClassSplit
from safemax.data.dataset import Dataset
from safemax.diffusion import sampling
from safemax.diffusion.condition import Prompt
from safemax.diffusion.model import Diffusion
from safemax.diffusion.sampling import FAST, Sampler
from safemax.errors import note, unknown
from safemax.evaluation.enough_images import check_enough_images, check_enough_samples
from safemax.evaluation.measure import measure
from safemax.evaluation.protocol import Evaluation
from safemax.evaluation.samples import cached_samples
from safemax.judges.config import JudgeConfig
from safemax.judges.load import judges
from safemax.judges.reference import reference
from safemax.methods import create, validate_steps
from safemax.methods.finetune import Finetune
from safemax.storage import cache
from safemax.training.hooks import Folders, Hooks, Log
from safemax.training.method import Method
from safemax.training.settings import Training
from safemax.training.trainer import Trainer

Classes = str | int | Sequence[str | int]
Settings = TypeVar("Settings")


def load_data(source: str = "digits", *, size: int | None = None, **options: Any) -> Dataset:
    """Load labelled images with a train and a test split.

    Args:
        source: `digits` (needs no network), `cifar10`, `fashion_mnist`, `mnist`, a Hugging Face id, or a folder of
            Parquet files or of images (`train/<class>/*.png`, `test/<class>/*.png`).
        size: side in pixels to which every image is cropped and resized; None keeps theirs.
        options: `label_column`, `image_column`, `background`, `pixel_range` and `flip` of `safemax.data.load`.

    Returns:
        the data set: uint8 images (N, C, H, W), labels (N,), the names of the classes.

    Raises:
        InputError: the source is unknown, unreachable or empty.

    Examples:
        >>> data = load_data("digits")
        >>> data.num_classes, data.image_shape, len(data.train), len(data.test)
        (10, (1, 8, 8), 1501, 296)
    """
    dataset = sources.load(source, size=size, **options)
    for each in dataset.notes:
        note(f"data = {source}: {each}")
    return dataset


def load_model(source: str | Path, *, prompts: Mapping[str, str | Sequence[str]] | None = None) -> Diffusion:
    """Load a class-conditional diffusion model, or a text-to-image model as one of classes that are told by prompts.

    Args:
        source: a diffusers folder, such as `Diffusion.save` writes, or a Hugging Face id. Addresses of MLflow's
            registry (`models:/NAME@ALIAS`) belong to the commands.
        prompts: of a text model, what asks for each class, by its name, in the order of the data's classes: a prompt, or
            several, of which training draws one for each image.

    Raises:
        InputError: nothing there, a damaged file, or a model that cannot be unlearned, with the reason.

    Examples:
        >>> from tempfile import mkdtemp
        >>> diffusion = pretrain(load_data("digits"), steps=0)
        >>> folder = mkdtemp()
        >>> diffusion.save(folder)
        >>> load_model(folder).digest() == diffusion.digest()
        True
    """
    given = {name: [each] if isinstance(each, str) else each for name, each in (prompts or {}).items()}
    return Diffusion.load(source, prompts=[Prompt(text, name) for name, texts in given.items() for text in texts])


def method(name: str = "safemax", *, preset: str = "", **knobs: Any) -> Method:
    """Return an unlearning method.

    Args:
        name: such as `safemax` or `salun`; a file of safemax/methods is a method.
        preset: a set of knobs that the method names, such as `paper`.
        knobs: values of the method's knobs, which win over the preset; lambda is written `lmbda` in Python.

    Raises:
        InputError: an unknown method, preset or knob, or a value that is not allowed.

    Examples:
        >>> method("safemax", lmbda=2.0).lmbda
        2.0
        >>> method("safemx")
        Traceback (most recent call last):
        ...
        safemax.errors.InputError: unknown method 'safemx' (did you mean 'safemax'?); known: ablating_concepts, ...
    """
    return create(name, preset=preset, **knobs)


def pretrain(
    data: Dataset,
    *,
    architecture: str = "auto",
    null_drop: float = 0.1,
    log: Log | None = None,
    progress: bool = False,
    **training: Any,
) -> Diffusion:
    """Train a base model on all classes of a data set.

    Args:
        data: the images.
        architecture: `small`, `medium`, `deep` or `ddpm` (the paper's, at 32x32); auto fits the image size.
        null_drop: share of rows given the null label, which guidance needs.
        log: called with losses and the step, every tenth step and at the last.
        progress: show a bar.
        training: fields of Training; by default 800 steps at lr 1e-3 with an average of the weights (ema 0.99).

    Returns:
        the model, in eval mode.

    Raises:
        InputError: a name or value that is not allowed.
        NonFiniteError: training diverged.

    Examples:
        >>> diffusion = pretrain(load_data("digits"), steps=1, batch_size=8, device="cpu")
        >>> diffusion.num_classes, diffusion.has_null
        (10, True)
    """
    settings = _settings(Training, {"steps": 800, "lr": 1e-3, "ema": 0.99, "forget_share": 0.0}, training)
    torch.manual_seed(derive_seed(settings.seed, 0))
    diffusion = Diffusion.create(architecture, data.image_shape, data.class_names)
    Trainer(
        diffusion, Finetune(null_drop=null_drop), data.train, (), settings,
        flip=data.natural, hooks=Hooks(log, progress=progress),
    ).fit()  # fmt: skip
    return diffusion


def unlearn(
    diffusion: Diffusion,
    method: Method | str,
    data: Dataset,
    *,
    forget: Classes,
    log: Log | None = None,
    progress: bool = False,
    **training: Any,
) -> Diffusion:
    """Return a copy of a model that has unlearned classes; the model itself stays as it is.

    Args:
        diffusion: the model to correct.
        method: from `method`, or the name of one, which then has its default knobs.
        data: the images that the model was trained on.
        forget: a class by name or index, several in a sequence or separated by commas.
        log: called with losses and the step, every tenth step and at the last, and with the cost at the end.
        progress: show a bar.
        training: fields of Training (steps, lr, batch_size, ema, seed, device, ...); what is left out has the
            method's own default, else that of Training.

    Returns:
        the corrected copy, in eval mode.

    Raises:
        InputError: an unknown class or field, or a model that lacks what the method needs.
        NonFiniteError: training diverged; no step was taken with a loss or gradient that is not finite.

    Examples:
        >>> data = load_data("digits")
        >>> base = pretrain(data, steps=0, device="cpu")
        >>> corrected = unlearn(base, method("safemax"), data, forget="0", steps=1, batch_size=8, device="cpu")
        >>> corrected.digest() == base.digest()
        False
    """
    chosen = create(method) if isinstance(method, str) else copy.deepcopy(method)
    settings = _settings(Training, chosen.training, training)
    validate_steps(chosen, settings.steps)
    corrected = copy.deepcopy(diffusion)
    result = Trainer(
        corrected, chosen, data.train, _labels(forget, data), settings,
        flip=data.natural, hooks=Hooks(log, progress=progress), folders=Folders(priors=cache.folder("priors")),
    ).fit()  # fmt: skip
    if log is not None:
        log(result.cost.metrics(), settings.steps)
    return corrected


def sample(
    diffusion: Diffusion,
    labels: Classes | Tensor,
    *,
    sampler: Sampler = FAST,
    seed: int = 0,
    progress: bool = False,
) -> Tensor:
    """Draw one image for each label.

    Args:
        diffusion: the model.
        labels: classes by name or index, or (N,) int64 in [0, K]; K is the null label.
        sampler: FAST (DDIM, 20 steps), PAPER (1,000 ancestral steps), or one of your own.
        seed: fixes the noise: two models of one architecture start from the same.
        progress: show a bar.

    Returns:
        images, (N, C, H, W) float32 in [-1, 1], on the CPU; `grid` makes a picture of them.

    Raises:
        InputError: an unknown class, or guidance for a model without a null label.

    Examples:
        >>> base = pretrain(load_data("digits"), steps=0, device="cpu")
        >>> sample(base, ["3", "7", 7], sampler=Sampler("ddim", steps=2)).shape
        torch.Size([3, 1, 8, 8])
    """
    if not isinstance(labels, Tensor):
        each = [labels] if isinstance(labels, str | int) else labels
        labels = torch.tensor([parse_classes(str(label), diffusion.class_names)[0] for label in each])
    return sampling.sample(diffusion, labels, sampler, seed=seed, progress=progress)


def evaluate(
    diffusion: Diffusion,
    data: Dataset,
    *,
    forget: Classes,
    judging: JudgeConfig | None = None,
    progress: bool = False,
    **evaluation: Any,
) -> dict[str, float]:
    """Measure what a model draws of forgotten and of retained classes.

    The judges are trained once for a data set and, like the samples, cached in $SAFEMAX_CACHE (default `.safemax`).

    Args:
        diffusion: the model: a base, or a corrected one.
        data: real images, for the judges and as the reference.
        forget: the classes that count as forgotten; those of the correction, for its base too.
        judging: which judges and how they are trained; None takes the defaults.
        progress: show bars.
        evaluation: fields of Evaluation (protocol, forget_samples, retain_samples, ...); by default the protocol `fast`.

    Returns:
        numbers by key, such as `forget/ua_reject` and `retain/fid_judge`;
        `safemax.evaluation.metric_info.meaning` tells what a key means.

    Raises:
        InputError: an unknown class, a field or value that is not allowed, or a model with fewer steps than a sampler.

    Examples:
        >>> data = load_data("digits")
        >>> quick = JudgeConfig(judge_steps=1, reject_judges=1)
        >>> counts = {"forget_samples": 10, "retain_samples": 2, "second_samples": 1}
        >>> metrics = evaluate(pretrain(data, steps=0), data, forget="0", judging=quick, **counts)
        >>> 0 <= metrics["forget/ua_reject"] <= 100
        True
    """
    labels = _labels(forget, data)
    protocol = _settings(Evaluation, {}, evaluation).fitted(diffusion, labels)
    check_enough_images(data, labels)
    check_enough_samples(protocol, ClassSplit.of(data.class_names, labels), data.class_names)
    classifiers = judges(data, judging or JudgeConfig(), device=str(diffusion.device), progress=progress)
    samples = cached_samples(diffusion, labels, protocol, progress=progress)
    return measure(samples, classifiers, reference(data, classifiers), labels)


def _settings(kind: type[Settings], defaults: Mapping[str, Any], given: Mapping[str, Any]) -> Settings:
    """Return a dataclass of knobs from defaults and what was given, which wins."""
    known = [each.name for each in fields(kind)]  # type: ignore[arg-type]
    for name in given:
        if name not in known:
            raise unknown(f"field of {kind.__name__}", name, known)
    return kind(**{**defaults, **given})


def _labels(forget: Classes, data: Dataset) -> tuple[int, ...]:
    names = [forget] if isinstance(forget, str | int) else forget
    return parse_classes(",".join(map(str, names)), data.class_names)
