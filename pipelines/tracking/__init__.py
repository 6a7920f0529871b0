"""Runs in MLflow, and the store that holds them."""

from pipelines.tracking.addresses import without_password
from pipelines.tracking.lifecycle import run
from pipelines.tracking.liveness import PROCESS, alive, process_of, this_process
from pipelines.tracking.mlflow_store import (
    find_run,
    first_line,
    is_absent,
    metric_key,
    refusal,
    search_all,
    setup,
    store,
    stored_table,
)
from pipelines.tracking.open_runs import OpenRuns
from pipelines.tracking.pages import MODE, experiment_page, spaced
from pipelines.tracking.provenance import environment
from pipelines.tracking.runs import ADMINISTRATION, DIGEST_LENGTH, RESUMED_FROM, Run
from pipelines.tracking.unjoined_run import describe_refused, describe_unjoined

__all__ = [
    "ADMINISTRATION",
    "DIGEST_LENGTH",
    "MODE",
    "PROCESS",
    "RESUMED_FROM",
    "OpenRuns",
    "Run",
    "alive",
    "describe_refused",
    "describe_unjoined",
    "environment",
    "experiment_page",
    "find_run",
    "first_line",
    "is_absent",
    "metric_key",
    "process_of",
    "refusal",
    "run",
    "search_all",
    "setup",
    "spaced",
    "store",
    "stored_table",
    "this_process",
    "without_password",
]
