"""The run that `mlflow run` opens before it starts our process, where the process refuses its parameters."""

from __future__ import annotations

import contextlib
import textwrap

from mlflow.exceptions import MlflowException
from requests import RequestException

from pipelines.tracking import mlflow_store
from pipelines.tracking.addresses import without_password
from pipelines.tracking.runs import is_chosen

_LONGEST_NAME = 100


def name_refused_run(run_id: str, reason: str) -> None:
    """Write on a run that nobody joined why it fails: as its name, unless a person named it, as a tag and as its note.

    `mlflow run` ends the run as FAILED. A store that does not answer is passed over: the terminal has the reason.
    """
    line = without_password(" ".join(reason.split()))
    with contextlib.suppress(MlflowException, RequestException):
        client = mlflow_store.store()
        if not is_chosen(client.get_run(run_id).info.run_name):
            brief = line.partition("; known: ")[0]
            client.update_run(run_id, name=textwrap.shorten(f"refused: {brief}", _LONGEST_NAME, placeholder=" ..."))
        client.set_tag(run_id, "failure", line)
        client.set_tag(run_id, "mlflow.note.content", f"Refused before any work: {line}")
