"""The variants of methods that a comparison compares, read from text: each is a method with its knobs and its training."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pipelines.cli.method_options import for_method
from pipelines.cli.parameters import Parameter, UsageError, Value, excerpt, parameters
from safemax.errors import unknown
from safemax.knobs import knobs
from safemax.methods import available, create, preset_of
from safemax.training.method import Method
from safemax.training.settings import Training

ALL, GOLD_STANDARD = "all", "retrain"
_LABEL = re.compile(r"(?P<name>[a-z_0-9]+)(@[A-Za-z0-9_.+-]{1,40})?")


@dataclass(frozen=True)
class MethodVariant:
    """A method with one set of knobs.

    Args:
        label: the method's name, or NAME@VARIANT for one more set of its knobs.
        name: the method's name.
        method: with its knobs.
        training: how it unlearns, with the seed 0.
    """

    label: str
    name: str
    method: Method
    training: Training

    def describe(self) -> dict[str, Any]:
        """Return what another process needs to make the variant again, as JSON."""
        values = {field: getattr(self.method, field) for field in knobs(self.method)}
        return {"label": self.label, "name": self.name, "knobs": values, "training": asdict(self.training)}


def read(methods: str, overrides: str, common: Mapping[str, Value]) -> tuple[MethodVariant, ...]:
    """Return the variants that text names.

    Args:
        methods: names or NAME@VARIANT, separated by commas: safemax,safemax@zero,salun. `all` stands for every method not
            named, except `retrain`, which the gold column shows: safemax,all has SAFEMax first.
        overrides: LABEL.KNOB=VALUE, separated by commas, of the method's knobs, its training's, or its preset:
            safemax@zero.target=zero,selective_amnesia.fisher_images=200,salun.preset=paper.
        common: knobs of safemax.training.settings.Training for all variants; an override of one takes precedence.

    Raises:
        UsageError: an unknown or repeated method or knob, or a value that is not allowed.
    """
    words = [each.strip() for each in methods.split(",")]
    others = [name for name in available() if name not in (GOLD_STANDARD, *words)]
    labels = [label for word in words for label in (others if word == ALL else [word])]
    if len(set(labels)) < len(labels):
        raise UsageError(f"methods = {excerpt(methods)} has a duplicate; NAME@VARIANT is another set of knobs")
    names = {label: _name(label) for label in labels}
    given = _overrides(overrides, names)
    return tuple(_variant(label, name, given[label], common) for label, name in names.items())


def _name(label: str) -> str:
    match = _LABEL.fullmatch(label)
    name = match["name"] if match else label
    if name not in available():
        raise UsageError(str(unknown("method", excerpt(label), [*available(), ALL])))
    return name


def _overrides(text: str, names: Mapping[str, str]) -> dict[str, dict[str, str]]:
    given: dict[str, dict[str, str]] = {label: {} for label in names}
    for word in filter(None, (each.strip() for each in text.split(","))):
        left, equals, value = word.partition("=")
        label, dot, name = left.rpartition(".")
        if not (equals and dot):
            raise UsageError(f"overrides: {excerpt(word)} is not allowed; write METHOD.KNOB=VALUE")
        if label not in given:
            raise UsageError(str(unknown("method of overrides", excerpt(label), given)))
        if name in given[label]:
            raise UsageError(f"overrides: {excerpt(left)} is given twice; each knob has one value")
        given[label][name] = value
    return given


def _variant(label: str, name: str, given: Mapping[str, str], common: Mapping[str, Value]) -> MethodVariant:
    method_type = available()[name]
    training_type = for_method({"training": Training}, name, method_type)["training"]
    own = {each.name: each for each in parameters(method_type)}
    shared = {each.name: each for each in parameters(training_type) if each.name != "seed"}
    for key in given:
        if key not in {*own, *shared, "preset"}:
            raise UsageError(str(unknown(f"knob of {label}", excerpt(key), [*own, *shared, "preset"])))
    settings = dict(common)
    if not training_type().steps:
        settings.pop("steps", None)  # a closed form is done before the first step
    preset = given.get("preset", "none").removeprefix("none")
    training = training_type(**preset_of(name, preset)[1] | settings | _values(given, shared))
    method = create(name, preset=preset, **_values(given, own))
    return MethodVariant(label, name, method, Training(**asdict(training)))


def _values(given: Mapping[str, str], known: Mapping[str, Parameter]) -> dict[str, Any]:
    return {known[name].field: known[name].read(text) for name, text in given.items() if name in known}
