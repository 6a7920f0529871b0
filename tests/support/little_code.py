"""Versions that carry one of our packages in place of all: most tests store a version, and few run the code in it."""

from __future__ import annotations

from collections.abc import Callable

import mlflow

import safemax.storage


def save_model() -> Callable[..., None]:
    """Return mlflow.pyfunc.save_model with 9 files of code in place of the 170 that take most of the time of storing a version."""
    real, code = mlflow.pyfunc.save_model, list(safemax.storage.__path__)
    return lambda *args, **options: real(*args, **options | {"code_paths": code})
