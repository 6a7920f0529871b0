"""A request for images of a served model: read and checked before anything is drawn; what is not allowed is refused in one line."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from safemax.diffusion.model import Diffusion
from safemax.diffusion.sampling import Sampler
from safemax.errors import InputError, unknown
from safemax.knobs import knobs

# Of a request: images, steps of each, and denoiser steps in all (one an image and step, two if guided): 64 images by default.
# Once a class is forgotten, a guidance scale below 1 is refused: there the null label decides too, and it still draws that class.
LIMITS = {"max_images": 64, "max_steps": 100, "max_denoiser_steps": 2560, "min_guidance_scale": 1.0}
SHOWN = 60  # characters of a bad value that the error repeats
_SEED_MAX = 2**62
_INDEX = re.compile(r"[0-9]{1,9}")


def defaults() -> dict[str, Any]:
    """Return every parameter of a request with its default: the sampler's knobs, where `name` is called `sampler`."""
    sampler = asdict(Sampler())
    return {"num_images": 1, "seed": 0, "sampler": sampler.pop("name"), **sampler}


@dataclass(frozen=True)
class ImageRequest:
    """What is to be drawn: of each class, by its row of the condition and its name, so many images."""

    classes: list[tuple[int, str]]
    count: int
    sampler: Sampler
    seed: int


@dataclass(frozen=True)
class RequestReader:
    """Reads requests to a model.

    Args:
        diffusion: the model.
        forgotten: names of the classes that it does not draw.
        limits: as LIMITS.
    """

    diffusion: Diffusion
    forgotten: Collection[str]
    limits: Mapping[str, Any]

    def read(self, labels: Sequence[Any], params: Mapping[str, Any]) -> ImageRequest:
        """Return what a request asks for.

        Args:
            labels: one a row: a class's name, one of its prompts, or its index.
            params: every parameter of `defaults`.

        Raises:
            InputError: one line with field, value and what is allowed.
        """
        for name, value in params.items():
            if value is None:
                raise InputError(f"{name} = null is not allowed; leave {name} out for its default")
        count, sampler = self._count(params["num_images"], len(labels)), self._sampler(params)
        classes, seed = [self._label(value) for value in labels], _whole("seed", params["seed"], 0, _SEED_MAX)
        self._afford(count * len(labels), sampler)
        return ImageRequest(classes, count, sampler, seed)

    def _label(self, value: Any) -> tuple[int, str]:
        names = self.diffusion.class_names
        # pandas makes floats of the indices in a column with gaps
        text = str(int(value) if isinstance(value, float) and value.is_integer() else value)
        index = int(text) if _INDEX.fullmatch(text) else len(names)
        row, index = self.diffusion.condition.ask(text, names) or (index, index)
        if index < len(names) and names[index] not in self.forgotten:
            return row, names[index]
        reason = "was forgotten by this model" if index < len(names) else "is not known"
        allowed = ", ".join(name for name in names if name not in self.forgotten)
        raise InputError(f"class_label = {text[:SHOWN]!r} {reason}; allowed: {allowed}, or the index of one")

    def _count(self, value: Any, rows: int) -> int:
        most = self.limits["max_images"]
        count = _whole("num_images", value, 1, most)
        if count * rows > most:
            what = f"num_images = {count} for {rows} rows is not allowed"
            raise InputError(f"{what}; a request has at most {most} images")
        return count

    def _afford(self, images: int, sampler: Sampler) -> None:
        cost, most = images * sampler.passes, self.limits["max_denoiser_steps"]
        if cost > most:
            what = f"{images} images of {sampler} take {cost} denoiser steps (images x steps, twice if guided)"
            raise InputError(f"{what}; a request has at most {most}")

    def _sampler(self, params: Mapping[str, Any]) -> Sampler:
        name, choices = params["sampler"], knobs(Sampler)["name"][1].choices
        if name not in choices:
            raise unknown("sampler", name[:SHOWN], choices)
        steps = _whole("steps", params["steps"], 1, min(self.limits["max_steps"], self.diffusion.T))
        sampler = Sampler(name, steps, *(params[each] for each in ("guidance_scale", "eta", "clip", "keep_eps")))
        least = self.limits["min_guidance_scale"]
        if self.forgotten and sampler.guidance_scale < least:
            what = f"guidance_scale = {sampler.guidance_scale:g} is not allowed; a model that forgot a class takes at least"
            raise InputError(f"{what} {least:g}: below 1 its null label contributes, which may still draw that class")
        return sampler


def _whole(name: str, value: Any, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not low <= value <= high:
        span = f"{name} is a whole number from {low} to {high}"
        raise InputError(f"{name} = {str(value)[:SHOWN]} is not allowed; {span}")
    return int(value)
