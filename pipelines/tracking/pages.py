"""The pages of MLflow's UI: links to them, and the view of an experiment's runs that shows what a reader compares."""

from __future__ import annotations

import json
import re
from urllib.parse import quote

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Experiment

from pipelines.tracking.addresses import without_login
from safemax import metric_keys as keys

UI = "http://127.0.0.1:5000"
MODE = "workflowType=machine_learning"  # the UI opens in its GenAI mode without it
VIEW = "corrections"
"""Name of the view: the state that the UI's own button `share` would store in a tag of the experiment."""
_VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"

# The columns of the view, in their order, and their widths in pixels.
COLUMNS = {
    "tags.`verdict`": 100,
    f"metrics.`{keys.UA}`": 85,
    f"metrics.`{keys.UA_REJECT}`": 120,
    f"metrics.`{keys.FID_JUDGE}`": 115,
    f"metrics.`{keys.FID_JUDGE}{keys.DELTA}`": 150,
    f"metrics.`{keys.ACCURACY}`": 115,
    f"metrics.`{keys.RUNTIME_MINUTES}`": 155,
    f"metrics.`{keys.PEAK_MEMORY_GB}`": 160,
    "tags.`unlearning.method`": 140,
    "tags.`unlearning.forget`": 130,
}


def experiment_page(experiment_id: str) -> str:
    """Return the page of an experiment's runs, as a link within the UI: in the view, and in the mode for training runs."""
    return f"#/experiments/{experiment_id}/runs?viewStateShareKey={VIEW}&{MODE}"


def run_page(experiment_id: str, run_id: str) -> str:
    """Return the page of a run, as a link within the UI."""
    return f"#/experiments/{experiment_id}/runs/{run_id}?{MODE}"


def artifact_page(experiment_id: str, run_id: str, path: str) -> str:
    """Return the page that shows an artifact of a run, as a link within the UI."""
    return f"#/experiments/{experiment_id}/runs/{run_id}/artifacts/{quote(path)}?{MODE}"


def version_page(name: str, version: str) -> str:
    """Return the page of a version of a registered model, as a link within the UI."""
    return f"#/models/{name}/versions/{version}?{MODE}"


def address(page: str) -> str:
    """Return a link within the UI as one from outside: on the tracking server, or on this machine after `make ui`."""
    server = mlflow.get_tracking_uri()
    return f"{without_login(server) if server.startswith('http') else UI}/{page}"


def save_view(client: MlflowClient, experiment: Experiment) -> None:
    """Give an experiment the view, unless it has it."""
    state = json.dumps(_state(), sort_keys=True)
    if experiment.tags.get(_VIEW_TAG) != state:
        client.set_experiment_tag(experiment.experiment_id, _VIEW_TAG, state)


def _state() -> dict[str, object]:
    fixed = {"attributes.`Run Name`": 260, "attributes.`Created`": 110}
    return {
        "searchFilter": "",
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": list(COLUMNS),
        "columnOrder": [*fixed, *COLUMNS],
        "columnWidths": {**fixed, **COLUMNS},
        "runsHiddenMode": "FIRST_10_RUNS",
        "runListHidden": False,
    }


def spaced(markdown: str) -> str:
    """Return markdown with space between the columns of its tables: MLflow's pages leave none."""
    return re.sub(r"(?m)^\|.*[^-:|\s].*\|$", lambda row: row[0].replace(" | ", " |&emsp;"), markdown)
