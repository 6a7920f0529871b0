"""Where a version comes from: the classes it forgot, the model it started from, and the attacks that were run on it."""

from __future__ import annotations

import torch

from pipelines import tracking
from pipelines.registry import model_versions
from safemax.data.batches import parse_classes
from safemax.data.class_split import ClassSplit
from safemax.data.dataset import Dataset
from safemax.diffusion.model import Diffusion
from safemax.errors import InputError


def classes_of(model: str, asked: str, dataset: Dataset) -> tuple[int, ...]:
    """Return the labels that a model is examined for: `asked`, or where that is auto, all that the version has forgotten.

    Raises:
        InputError: no such class, or auto for a model that states none.
    """
    if asked != "auto":
        return parse_classes(asked, dataset.class_names)
    stated = model_versions.version_of(model).tags.get("forgotten", "") if model.startswith("models:") else ""
    if not stated:
        raise InputError(
            f"forget = auto is not allowed: {model} does not state what it has forgotten; name the classes"
        )
    return parse_classes(stated, dataset.class_names)


def origin(model: str, asked: str) -> str | None:
    """Return the address of the model that a version is held against: `asked`, or where that is auto, the version's base.

    That is its parent, or where the parent has forgotten classes too, the first ancestor that has not; without a parent,
    another version with the alias base. None where `asked` is none or nothing is known.
    """
    if asked != "auto":
        return None if asked == "none" else model_versions.pinned(asked)
    if not model.startswith("models:"):
        return None
    found = model_versions.version_of(model)
    parent = found.tags.get("parent")
    if parent is None:
        base = model_versions.find(found.name, "base")
        return None if base == model_versions.pinned(model) else base
    while parent.startswith("models:"):
        tags = model_versions.version_of(parent).tags
        if not tags.get("forgotten") or "parent" not in tags:
            break
        parent = tags["parent"]
    return parent


def load(address: str, dataset: Dataset) -> Diffusion:
    """Return a model, on a GPU where there is one; InputError where its classes or images are not those of the data."""
    model = Diffusion.load(model_versions.resolve(address))
    agree_on_classes(model, dataset)
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def forgotten(address: str) -> list[str]:
    """Return the names of the classes that a version has forgotten, all so far; none of a model that is no version."""
    return model_versions.evidence(address)["forgotten"] if address.startswith("models:") else []


def class_split(address: str, forget: tuple[int, ...], dataset: Dataset) -> ClassSplit:
    """Return the classes to forget now, those that the model at an address has forgotten earlier, and the retained ones."""
    return ClassSplit.of(dataset.class_names, forget, forgotten(address))


def agree_on_classes(diffusion: Diffusion, dataset: Dataset) -> None:
    """Raise InputError where a model's classes or images are not those of a data set; name the classes of one that does not.

    The same label under two names would be forgotten under the one and served under the other.
    """
    if diffusion.num_classes != dataset.num_classes or diffusion.image_shape != dataset.image_shape:
        raise InputError(
            f"the model knows {diffusion.num_classes} classes of {diffusion.image_shape} images, "
            f"data = {dataset.name} has {dataset.num_classes} of {dataset.image_shape}"
        )
    if not diffusion.names_are_stated:
        diffusion.class_names, diffusion.names_are_stated = dataset.class_names, True
    for k, (known, given) in enumerate(zip(diffusion.class_names, dataset.class_names, strict=True)):
        if known != given:
            raise InputError(
                f"label {k} is {known!r} to the model and {given!r} in data = {dataset.name}; they must agree"
            )


def refuse_other_data(model: str, dataset: Dataset) -> None:
    """Raise InputError where a version was made of other data than those it is to be examined with."""
    if not model.startswith("models:"):
        return
    stated = model_versions.version_of(model).tags.get("data.digest", dataset.digest)
    if stated != dataset.digest:
        raise InputError(
            f"data = {dataset.name} is not what {model} was made of: digest {dataset.digest[:12]}, not {stated[:12]}"
        )


def attack_run(model: str, asked: str) -> str | None:
    """Return the id of a run of attacks: `asked`, or where that is auto, the newest finished one on this version."""
    if asked != "auto":
        return None if asked == "none" else asked
    if not model.startswith("models:"):
        return None
    client = tracking.store()
    found = client.search_runs(
        [each.experiment_id for each in client.search_experiments()],
        f"tags.kind = 'attack' and tags.version = '{model_versions.pinned(model)}' and attributes.status = 'FINISHED'",
        order_by=["attributes.start_time DESC"],
        max_results=1,
    )
    return found[0].info.run_id if found else None
