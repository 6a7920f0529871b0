"""Where a version comes from: the classes that it forgot, its base, its data, and the attacks that were made on it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import torch
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from pipelines import tracking
from pipelines.registry import model_versions
from pipelines.tracking import pages
from safemax.data.class_names import label_meaning, parse_classes
from safemax.data.class_split import ClassSplit
from safemax.data.dataset import Dataset
from safemax.diffusion.model import Diffusion
from safemax.errors import InputError, note
from safemax.training.devices import use_fast_gpu_kernels

PARENT_DIGEST = "parent.digest"  # the tag of a version that holds the digest of its parent's weights


def classes_of(model: str, option: str, dataset: Dataset) -> tuple[int, ...]:
    """Return the labels that a model is examined for: those of `option`, or if that is auto, all that it has forgotten.

    Raises:
        InputError: no such class, or auto for a model that states none.
    """
    if option != "auto":
        return parse_classes(option, dataset.class_names)
    is_version = model_versions.is_registry_address(model)
    stated = model_versions.tags_of(model_versions.version_of(model)).get("forgotten", "") if is_version else ""
    if not stated:
        raise InputError(
            f"forget = auto is not allowed: {model} does not state what it has forgotten; name the classes"
        )
    return parse_classes(stated, dataset.class_names)


def origin(model: str, option: str) -> str | None:
    """Return the address of the model that a version is compared with: `option`, or if that is auto, the version's base.

    That is its parent, or if the parent has forgotten classes too, the nearest ancestor that has not; without a parent,
    another version with the alias base. None if `option` is none or no base is known.

    Raises:
        InputError: an ancestor on the way was deleted.
    """
    if option != "auto":
        return None if option == "none" else model_versions.resolve_alias(option)
    if not model_versions.is_registry_address(model):
        return None
    line = list(_line(model_versions.resolve_alias(model)))
    if len(line) > 1:
        return line[-1]
    base = model_versions.find(model_versions.version_of(model).name, "base")
    return None if base == line[0] else base


def _line(address: str) -> Iterator[str]:
    """Yield the address of a version, then its ancestors' up to the nearest one that has forgotten nothing.

    A tag `parent` may lead back to an address of the line, which ends the line.
    """
    seen: set[str] = set()
    parent: str | None = address
    while parent is not None and parent not in seen:
        yield parent
        seen.add(parent)
        if not model_versions.is_registry_address(parent):
            return
        version = model_versions.version_of(parent)
        if parent != address and not model_versions.tags_of(version).get("forgotten"):
            return
        parent = parent_of(version)


def parent_of(version: ModelVersion) -> str | None:
    """Return where the parent of a version is now: at its address, or if it was renamed, where its weights are.

    Raises:
        InputError: the parent was deleted.
    """
    tags = model_versions.tags_of(version)
    stated = tags.get("parent")
    if stated is None or not model_versions.is_registry_address(stated):
        return stated
    address = f"models:/{version.name}/{version.version}"
    digest = tags.get(PARENT_DIGEST)
    if _holds(stated, digest):
        return model_versions.resolve_alias(stated)
    digest = digest or str(model_versions.evidence(address).get("parent_digest"))
    now = _with_weights(digest, version.name, besides=address)
    if now is None:
        raise InputError(
            f"{stated}, the parent of {address}, was deleted, and no version has its weights {digest[:12]}"
        )
    return now


def with_parent_checked(tags: Mapping[str, str], digest: str | None) -> dict[str, str]:
    """Return the tags of a new version with the parent where it is now, its weights' digest, and nothing that leads nowhere.

    A parent that was deleted during the correction becomes the tag parent.deleted: its address may soon be another version's.

    Args:
        tags: may hold `parent`, an address.
        digest: of the parent's weights.
    """
    stated = tags.get("parent", "")
    if not model_versions.is_registry_address(stated):
        return dict(tags)
    others = {key: value for key, value in tags.items() if key != "parent"}
    if digest:
        others[PARENT_DIGEST] = digest
    name = stated.removeprefix("models:/").partition("/")[0]
    now = stated if _holds(stated, digest) else _with_weights(digest or "", name)
    return {**others, "parent": now} if now else {**others, "parent.deleted": stated}


def _holds(address: str, digest: str | None) -> bool:
    """Return whether a version exists, and if both digests are known, whether it has these weights."""
    try:
        tags = model_versions.version_of(address).tags
    except InputError:
        return False
    return digest is None or tags.get(model_versions.WEIGHTS, digest) == digest


def _with_weights(digest: str, name: str, besides: str = "") -> str | None:
    """Return the address of a version with these weights, preferably one of a registered model, None if there is none."""
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        return None
    versions = tracking.search_all(
        tracking.store().search_model_versions, f"tags.`{model_versions.WEIGHTS}` = '{digest}'"
    )
    versions.sort(key=lambda each: (each.name != name, each.name, int(each.version)))
    addresses = (f"models:/{each.name}/{each.version}" for each in versions)
    return next((each for each in addresses if each != besides), None)


def load(address: str, dataset: Dataset) -> Diffusion:
    """Return a model, on a GPU if there is one; InputError if its classes or images are not those of the data."""
    diffusion = Diffusion.load(model_versions.resolve(address))
    agree_on_classes(diffusion, dataset)
    use_fast_gpu_kernels()
    return diffusion.to("cuda" if torch.cuda.is_available() else "cpu")


def forgotten(address: str) -> list[str]:
    """Return the names of all classes that a version has forgotten so far; none for a model that is not a version."""
    if not model_versions.is_registry_address(address):
        return []
    names = model_versions.evidence(address).get("forgotten")
    if not isinstance(names, list) or not all(isinstance(each, str) for each in names):
        raise InputError(
            f"the evidence of {address} does not list the classes that it has forgotten: {str(names)[:80]}"
        )
    return names


def class_split(address: str, forget: tuple[int, ...], dataset: Dataset) -> ClassSplit:
    """Return the classes to forget now, those that the model at an address has forgotten earlier, and the retained ones."""
    return ClassSplit.of(dataset.class_names, forget, forgotten(address))


def agree_on_classes(diffusion: Diffusion, dataset: Dataset) -> None:
    """Raise InputError if a model's classes or images are not those of a data set; name the classes of a model without names.

    Otherwise a label with two names would be forgotten under one and served under the other. What the labels of a model
    without names are taken for is told, since nothing can verify it.
    """
    if not diffusion.names_are_stated and dataset.num_classes == diffusion.num_classes + 1:
        diffusion.name_classes(dataset.class_names)  # as many classes as labels: none of them is the null label
    if diffusion.num_classes != dataset.num_classes or diffusion.image_shape != dataset.image_shape:
        raise InputError(
            f"the model has {diffusion.num_classes} classes of {diffusion.image_shape} images, "
            f"data = {dataset.name} has {dataset.num_classes} of {dataset.image_shape}" + _resize(diffusion, dataset)
        )
    if not diffusion.names_are_stated:
        note(f"the model has no class names; {label_meaning(dataset.class_names)}")
        diffusion.class_names, diffusion.names_are_stated = dataset.class_names, True
    for k, (ours, theirs) in enumerate(zip(diffusion.class_names, dataset.class_names, strict=True)):
        if ours != theirs:
            raise InputError(
                f"label {k} is {ours!r} in the model and {theirs!r} in data = {dataset.name}; they must be equal"
            )


def _resize(diffusion: Diffusion, dataset: Dataset) -> str:
    """Return what an error says where resized images would fit the model."""
    (*ours, _, side), (*theirs, _, other) = diffusion.image_shape, dataset.image_shape
    return f"; size = {side} resizes the images" if ours == theirs and side != other else ""


def refuse_other_data(model: str, dataset: Dataset) -> None:
    """Raise InputError if a version was trained on other data than those that it is to be examined with."""
    if not model_versions.is_registry_address(model):
        return
    stated = model_versions.tags_of(model_versions.version_of(model)).get("data.digest", dataset.digest)
    if stated != dataset.digest:
        raise InputError(
            f"data = {dataset.name} is not what {model} was trained on: digest {dataset.digest[:12]}, not {stated[:12]}"
        )


def run_link(run_id: str | None) -> dict[str, str]:
    """Return the page of a run by the run's id; nothing for a run that was deleted."""
    try:
        experiment = tracking.store().get_run(run_id).info.experiment_id if run_id else None
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        experiment = None
    return {str(run_id): pages.address(pages.run_page(experiment, str(run_id)))} if experiment else {}


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
