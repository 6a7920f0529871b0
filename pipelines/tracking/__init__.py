"""Runs in MLflow, and the store that holds them."""

from pipelines.tracking.addresses import without_password
from pipelines.tracking.liveness import PROCESS, alive, this_process
from pipelines.tracking.mlflow_store import find_run, first_line, is_absent, refusal, search_all, setup, store
from pipelines.tracking.open_runs import OpenRuns
from pipelines.tracking.provenance import environment
from pipelines.tracking.runs import ADMINISTRATION, MODE, RESUMED_FROM, Run, run, spaced
from pipelines.tracking.unjoined_run import describe_refused, describe_unjoined

__all__ = [
    "ADMINISTRATION",
    "MODE",
    "PROCESS",
    "RESUMED_FROM",
    "OpenRuns",
    "Run",
    "alive",
    "describe_refused",
    "describe_unjoined",
    "environment",
    "find_run",
    "first_line",
    "is_absent",
    "refusal",
    "run",
    "search_all",
    "setup",
    "spaced",
    "store",
    "this_process",
    "without_password",
]
