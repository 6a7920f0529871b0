"""The model to correct, made ready before any work: with a schedule and class names, and with samplers that it allows."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

from pipelines.registry import lineage, model_versions
from safemax.data.dataset import Dataset
from safemax.diffusion.model import Diffusion
from safemax.errors import InputError
from safemax.evaluation.protocol import Evaluation
from safemax.storage import cache


class Source(NamedTuple):
    """A model to correct, and how it can be measured."""

    address: str
    evaluation: Evaluation


def ready(address: str, schedule: str, dataset: Dataset, evaluation: Evaluation) -> Source:
    """Return the model at an address as every later step can load it, and the evaluation that its sampling allows.

    A folder without a scheduler, or one whose labels only the data can tell from the null label, is completed in a copy
    below $SAFEMAX_CACHE, which is the address from then on.

    Args:
        address: a folder, a hub id or a models:/ address.
        schedule: auto, or the name of one for a model without a scheduler.
        dataset: the real images, whose class names a model without names takes.
        evaluation: how the model is to be measured.

    Raises:
        InputError: the model does not fit the data, or has fewer diffusion steps than a sampler takes.
    """
    if schedule != "auto" and model_versions.is_registry_address(address):
        raise InputError(f"schedule = {schedule} is not allowed: {address} has a schedule of its own; leave it at auto")
    folder = model_versions.resolve(address)
    diffusion = Diffusion.load(folder, schedule=schedule)
    had_null = diffusion.has_null
    lineage.agree_on_classes(diffusion, dataset)
    if schedule != "auto" or diffusion.has_null != had_null:
        address = str(_completed(diffusion))
        print(f"the model was completed in {address}")
    return Source(address, evaluation.fitted(diffusion))


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
