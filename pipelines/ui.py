"""Serve MLflow's UI to this machine alone, and say where the training runs and the versions are.

The UI opens in a mode for language models that hides training runs, unless a link says otherwise.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import mlflow
from mlflow import MlflowClient

from pipelines import tracking
from pipelines.cli.parser import main, parse
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
    """Return a line for each experiment and registered model of a store: its name and its page, in the training-run mode."""
    experiments = [(each.name, f"experiments/{each.experiment_id}") for each in client.search_experiments()]
    models = [(f"{each.name} (versions)", f"models/{each.name}") for each in client.search_registered_models()]
    found = [*reversed(experiments), *models]
    width = max(len(name) for name, _ in found)
    return [f"{name:<{width}}  {base}/#/{path}?{tracking.MODE}" for name, path in found]


def command(store: str, port: int) -> list[str]:
    """Return the command that serves a store: one worker, on the loopback interface."""
    words = ["mlflow", "server", "--backend-store-uri", store, "--host", HOST, "--port", str(port), "--workers", "1"]
    return [sys.executable, "-m", *words]


def serve(argv: Sequence[str]) -> None:
    """Print the links and become the server."""
    asked = parse("python -m pipelines.ui", __doc__ or "", PARAMETERS, argv)["server"]
    client, store = tracking.store(), mlflow.get_tracking_uri()
    if store.startswith("http"):
        raise InputError(f"MLFLOW_TRACKING_URI = {store} is a server already; open it in a browser")
    print("\n".join(links(client, f"http://{HOST}:{asked.port}")))
    print("(click `Model training`, upper left, once: the browser remembers it, MLflow's own links do not)", flush=True)
    # Without this, the server keeps eight more processes of 250 MB for jobs that nobody gives it.
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    words = command(store, asked.port)
    os.execv(words[0], words)


if __name__ == "__main__":
    main(serve)
