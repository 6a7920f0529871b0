"""The run that `mlflow run` opens before it starts our process, where the process does no work: a refusal, a plan, a list."""

from __future__ import annotations

import contextlib
import os
import textwrap
from collections.abc import Mapping

from mlflow.exceptions import MlflowException
from requests import RequestException

from pipelines.tracking import mlflow_store
from pipelines.tracking.addresses import without_password
from pipelines.tracking.lifecycle import is_chosen

_LONGEST_NAME = 100
_NOTE = "mlflow.note.content"


def describe_refused(reason: str) -> None:
    """Write on the run that nobody joined why it fails: as its name, as a tag and as its note.

    `mlflow run` ends the run as FAILED.
    """
    line = without_password(" ".join(reason.split()))
    brief = line.partition("; known: ")[0]
    _describe(f"refused: {brief}", {"failure": line, _NOTE: f"Refused before any work: {line}"})


def describe_unjoined(kind: str, name: str, text: str) -> None:
    """Write on the run that nobody joined what a command printed, a plan or a list: its kind, a name, and the text as its note."""
    _describe(name, {"kind": kind, _NOTE: f"```\n{text}\n```"})


def _describe(name: str, tags: Mapping[str, str]) -> None:
    """Name the run, unless a person did, and tag it; a store that does not answer is passed over: the terminal has it all."""
    run_id = os.environ.get("MLFLOW_RUN_ID")
    if not run_id:
        return
    with contextlib.suppress(MlflowException, RequestException):
        client = mlflow_store.store()
        if not is_chosen(client.get_run(run_id).info.run_name):
            client.update_run(run_id, name=textwrap.shorten(name, _LONGEST_NAME, placeholder=" ..."))
        for key, value in tags.items():
            client.set_tag(run_id, key, value)
