"""Serve MLflow's UI to this machine only, and print links to the training runs and the versions.

Without such a link, the UI opens in a mode for language models that hides training runs.
"""

from __future__ import annotations

if __name__ == "__main__":  # first: help and refusals need none of the imports below
    from pipelines.cli import console

    console.run("ui")

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import mlflow
from mlflow import MlflowClient

from pipelines import tracking
from pipelines.cli.parser import parse
from safemax.errors import InputError
from safemax.knobs import check, knob

HOST = "127.0.0.1"


@dataclass(frozen=True)
class UIOptions:
    """The server."""

    port: int = knob(5000, "port on this machine", bounds=(1, 65535))

    def __post_init__(self) -> None:
        check(self)


PARAMETERS: dict[str, type] = {"server": UIOptions}


def links(client: MlflowClient, base: str) -> list[str]:
    """Return a line for each experiment and registered model: its name and its page, in the mode for training runs."""
    experiments = tracking.search_all(client.search_experiments)
    models = tracking.search_all(client.search_registered_models)
    pages = [(each.name, tracking.experiment_page(each.experiment_id)) for each in reversed(experiments)]
    pages += [(f"{each.name} (versions)", f"#/models/{each.name}?{tracking.MODE}") for each in models]
    width = max(len(name) for name, _ in pages)
    return [f"{name:<{width}}  {base}/{page}" for name, page in pages]


def command(store: str, port: int) -> list[str]:
    """Return the command that serves a store: one worker, on the loopback interface."""
    words = ["mlflow", "server", "--backend-store-uri", store, "--host", HOST, "--port", str(port), "--workers", "1"]
    if os.environ["MLFLOW_LOGGING_LEVEL"] not in ("INFO", "DEBUG"):
        words += ["--uvicorn-opts", "--log-level=warning"]  # otherwise a line for each request
    return [sys.executable, "-m", *words]


def ui(argv: Sequence[str]) -> None:
    """Print the links and become the server."""
    options = parse("python -m pipelines.ui", __doc__ or "", PARAMETERS, argv)["server"]
    client, store = tracking.store(), mlflow.get_tracking_uri()
    if store.startswith("http"):
        raise InputError(
            f"MLFLOW_TRACKING_URI = {tracking.without_password(store)} is already a server; open it in a browser"
        )
    print("\n".join(links(client, f"http://{HOST}:{options.port}")))
    print("(click `Model training`, upper left, once: the browser remembers it, MLflow's own links do not)", flush=True)
    # Otherwise the server starts eight more processes of 250 MB each, for jobs that nobody submits.
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    os.environ.setdefault("PYTHONWARNINGS", "ignore:starlette.middleware.wsgi is deprecated")  # which MLflow imports
    words = command(store, options.port)
    os.execv(words[0], words)
