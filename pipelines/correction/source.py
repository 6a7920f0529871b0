"""The model to correct, made ready before any work: with a schedule and class names, and with samplers that it allows."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pipelines.engine.options import NONE, WorkerOptions
from pipelines.registry import lineage, model_versions
from safemax.data.class_split import ClassSplit
from safemax.data.dataset import Dataset
from safemax.diffusion.condition import Prompt
from safemax.diffusion.home import labels_of
from safemax.diffusion.model import Diffusion
from safemax.errors import InputError
from safemax.evaluation.enough_images import check_enough_samples
from safemax.evaluation.protocol import Evaluation
from safemax.storage import atomic, cache
from safemax.training.method import Method
from safemax.training.settings import Training
from safemax.training.trainer import Trainer


class Source(NamedTuple):
    """A model to correct, and how it can be measured."""

    address: str
    evaluation: Evaluation


def ready(
    address: str,
    schedule: str,
    dataset: Dataset,
    evaluation: Evaluation,
    prompts: Sequence[Prompt] = (),
    *,
    forget: Sequence[tuple[int, ...]] = (),
    trainings: Sequence[tuple[Method, Training]] = (),
) -> Source:
    """Return the model at an address as every later step can load it, and the evaluation that its sampling allows.

    A folder without a scheduler, or without prompts, or one whose labels only the data can tell from the null label, is
    completed in a copy below $SAFEMAX_CACHE, which is the address from then on. So is a model of more classes than the data
    have, by their names: as one of these alone.

    Args:
        address: a folder, a hub id or a models:/ address.
        schedule: auto, or the name of one for a model without a scheduler.
        dataset: the real images, whose class names a model without names takes.
        evaluation: how the model is to be measured.
        prompts: of a text model, in the order of the data's classes.
        forget: labels to forget, of each correction to come.
        trainings: methods that are to correct it, each with its settings.

    Raises:
        InputError: the model does not fit the data, a method or its settings, has fewer diffusion steps than a sampler takes,
            or too few samples are to be drawn.
    """
    if schedule != "auto" and model_versions.is_registry_address(address):
        raise InputError(f"schedule = {schedule} is not allowed: {address} has a schedule of its own; leave it at auto")
    folder = model_versions.resolve(address)
    diffusion = whole = Diffusion.load(folder, schedule=schedule, prompts=prompts)
    had_null = diffusion.has_null
    if not model_versions.is_registry_address(address) and _is_part_of(dataset.class_names, diffusion):
        diffusion = whole.for_classes(dataset.class_names)
        rest = whole.num_classes - diffusion.num_classes
        print(
            f"the model's other {rest} classes have no images in data = {dataset.name}: they are neither trained on nor measured"
        )
    lineage.agree_on_classes(diffusion, dataset)
    fitted = fitting(diffusion, dataset, evaluation, forget, trainings, lineage.forgotten(address))
    if schedule != "auto" or prompts or diffusion is not whole or diffusion.has_null != had_null:
        address = str(_completed(diffusion))
        print(f"the completed model is in {address}")
    return Source(address, fitted)


def fitting(
    diffusion: Diffusion,
    dataset: Dataset,
    evaluation: Evaluation,
    forget: Sequence[tuple[int, ...]],
    trainings: Sequence[tuple[Method, Training]],
    forgotten: Sequence[str] = (),
) -> Evaluation:
    """Return the evaluation that a model's sampling allows, once model, methods and samples go together.

    Args:
        diffusion: the model to correct.
        dataset: the real images.
        evaluation: how the model is to be measured.
        forget: labels to forget, of each correction to come.
        trainings: methods that are to correct it, each with its settings.
        forgotten: names of classes that the model has forgotten already.

    Raises:
        InputError: a method or its settings do not fit the model, or too few samples are to be drawn.
    """
    fitted = evaluation.fitted(diffusion, tuple(dict.fromkeys(label for labels in forget for label in labels)))
    for labels in forget:
        check_enough_samples(fitted, ClassSplit.of(dataset.class_names, labels, forgotten), dataset.class_names)
        for method, training in trainings:
            Trainer(diffusion, method, dataset.train, labels, training)  # refuses what does not go together
    return fitted


def seen_by_workers(folder: Path, options: WorkerOptions) -> Path:
    """Return a folder that workers read a model from: its own, or on a cluster a copy in the cache, which all machines share.

    Args:
        folder: of the model; MLflow may keep it on this machine alone.
        options: of the workers.
    """
    if options.cluster == NONE:
        return folder
    diffusion = Diffusion.load(folder)
    key = cache.key({"model": diffusion.identity(), "class_names": diffusion.class_names})  # weights, prompts, schedule
    shared = cache.folder("bases").absolute() / key
    if not shared.exists():
        shared.parent.mkdir(parents=True, exist_ok=True)
        atomic.create_folder(shared, lambda place: shutil.copytree(folder, place, dirs_exist_ok=True))
    return shared


def _is_part_of(names: tuple[str, ...], diffusion: Diffusion) -> bool:
    """Whether a data set's classes are some of a model's many, or all of them by their synonyms."""
    if not diffusion.names_are_stated or diffusion.condition.facts() or len(names) > diffusion.num_classes:
        return False
    has_synonyms = diffusion.home is not None and bool(diffusion.home.synonyms())
    try:
        labels = labels_of(names, diffusion.home, diffusion.class_names)
    except InputError:
        return False
    return len(labels) < diffusion.num_classes or (has_synonyms and names != diffusion.class_names)


def _completed(diffusion: Diffusion) -> Path:
    facts = {"model": diffusion.identity(), "class_names": diffusion.class_names}
    folder = (cache.folder("models") / cache.key(facts)).absolute()
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=folder.parent))
        diffusion.save(scratch)
        with contextlib.suppress(OSError):  # another process was first, with the same content
            scratch.rename(folder)
        shutil.rmtree(scratch, ignore_errors=True)
    return folder
