"""Where a version comes from: the classes that it forgot, its base, its data, and the attacks that were made on it."""

from __future__ import annotations

import torch

from pipelines import tracking
from pipelines.registry import model_versions
from safemax.data.batches import parse_classes
from safemax.data.class_split import ClassSplit
from safemax.data.dataset import Dataset
from safemax.diffusion.model import Diffusion
from safemax.errors import InputError


def classes_of(model: str, option: str, dataset: Dataset) -> tuple[int, ...]:
    """Return the labels that a model is examined for: those of `option`, or if that is auto, all that it has forgotten.

    Raises:
        InputError: no such class, or auto for a model that states none.
    """
    if option != "auto":
        return parse_classes(option, dataset.class_names)
    stated = (
        model_versions.version_of(model).tags.get("forgotten", "") if model_versions.is_registry_address(model) else ""
    )
    if not stated:
        raise InputError(
            f"forget = auto is not allowed: {model} does not state what it has forgotten; name the classes"
        )
    return parse_classes(stated, dataset.class_names)


def origin(model: str, option: str) -> str | None:
    """Return the address of the model that a version is compared with: `option`, or if that is auto, the version's base.

    That is its parent, or if the parent has forgotten classes too, the nearest ancestor that has not; without a parent,
    another version with the alias base. None if `option` is none or no base is known.
    """
    if option != "auto":
        return None if option == "none" else model_versions.resolve_alias(option)
    if not model_versions.is_registry_address(model):
        return None
    version = model_versions.version_of(model)
    parent = version.tags.get("parent")
    if parent is None:
        base = model_versions.find(version.name, "base")
        return None if base == model_versions.resolve_alias(model) else base
    while model_versions.is_registry_address(parent):
        tags = model_versions.version_of(parent).tags
        if not tags.get("forgotten") or "parent" not in tags:
            break
        parent = tags["parent"]
    return parent


def load(address: str, dataset: Dataset) -> Diffusion:
    """Return a model, on a GPU if there is one; InputError if its classes or images are not those of the data."""
    diffusion = Diffusion.load(model_versions.resolve(address))
    agree_on_classes(diffusion, dataset)
    return diffusion.to("cuda" if torch.cuda.is_available() else "cpu")


def forgotten(address: str) -> list[str]:
    """Return the names of all classes that a version has forgotten so far; none for a model that is not a version."""
    return model_versions.evidence(address)["forgotten"] if model_versions.is_registry_address(address) else []


def class_split(address: str, forget: tuple[int, ...], dataset: Dataset) -> ClassSplit:
    """Return the classes to forget now, those that the model at an address has forgotten earlier, and the retained ones."""
    return ClassSplit.of(dataset.class_names, forget, forgotten(address))


def agree_on_classes(diffusion: Diffusion, dataset: Dataset) -> None:
    """Raise InputError if a model's classes or images are not those of a data set; name the classes of a model without names.

    Otherwise a label with two names would be forgotten under one and served under the other.
    """
    if diffusion.num_classes != dataset.num_classes or diffusion.image_shape != dataset.image_shape:
        raise InputError(
            f"the model has {diffusion.num_classes} classes of {diffusion.image_shape} images, "
            f"data = {dataset.name} has {dataset.num_classes} of {dataset.image_shape}"
        )
    if not diffusion.names_are_stated:
        diffusion.class_names, diffusion.names_are_stated = dataset.class_names, True
    for k, (ours, theirs) in enumerate(zip(diffusion.class_names, dataset.class_names, strict=True)):
        if ours != theirs:
            raise InputError(
                f"label {k} is {ours!r} in the model and {theirs!r} in data = {dataset.name}; they must be equal"
            )


def refuse_other_data(model: str, dataset: Dataset) -> None:
    """Raise InputError if a version was trained on other data than those that it is to be examined with."""
    if not model_versions.is_registry_address(model):
        return
    stated = model_versions.version_of(model).tags.get("data.digest", dataset.digest)
    if stated != dataset.digest:
        raise InputError(
            f"data = {dataset.name} is not what {model} was trained on: digest {dataset.digest[:12]}, not {stated[:12]}"
        )


def attack_run(model: str, option: str) -> str | None:
    """Return the id of a run of attacks: `option`, or if that is auto, the newest finished one on this version."""
    if option != "auto":
        return None if option == "none" else option
    if not model_versions.is_registry_address(model):
        return None
    client = tracking.store()
    runs = client.search_runs(
        [each.experiment_id for each in tracking.search_all(client.search_experiments)],
        f"tags.kind = 'attack' and tags.version = '{model_versions.resolve_alias(model)}' and attributes.status = 'FINISHED'",
        order_by=["attributes.start_time DESC"],
        max_results=1,
    )
    return runs[0].info.run_id if runs else None
