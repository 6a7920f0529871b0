"""Runs in MLflow: the one place that writes them."""

from pipelines.tracking.runs import (
    ADMINISTRATION,
    MODE,
    Run,
    alive,
    environment,
    refusal,
    run,
    setup,
    spaced,
    store,
    without_password,
)

__all__ = [
    "ADMINISTRATION",
    "MODE",
    "Run",
    "alive",
    "environment",
    "refusal",
    "run",
    "setup",
    "spaced",
    "store",
    "without_password",
]
