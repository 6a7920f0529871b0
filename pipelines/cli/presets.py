"""Named sets of knobs that a method brings along."""

from __future__ import annotations

import dataclasses

from safemax.knobs import knobs
from safemax.methods import create
from safemax.training.method import Method


def with_preset(name: str, method: Method, preset: str) -> Method:
    """Return the method with a preset's knobs where its own are at their defaults (`mlflow run` passes every default)."""
    fields = {each.name: each.default for each in dataclasses.fields(method)}
    changed = {key: getattr(method, key) for key in knobs(method) if getattr(method, key) != fields[key]}
    return create(name, preset="" if preset == "none" else preset, **changed)
