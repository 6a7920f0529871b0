"""The one place that writes runs: parameters, metrics, pictures, datasets, notes, and how a run ended."""

from __future__ import annotations

import contextlib
import getpass
import io
import json
import logging
import os
import platform
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote

import mlflow
import pandas as pd
import psutil
import requests
import torch
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.entities import Dataset as DatasetEntity
from mlflow.entities import DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from PIL import Image
from requests import RequestException
from sqlalchemy.exc import SQLAlchemyError

from pipelines import ROOT
from pipelines.tracking.metric_journal import MetricJournal
from safemax.data.dataset import Dataset
from safemax.errors import InputError, Stopped, chain

FLUSH_SECONDS = 3.0
UI = "http://127.0.0.1:5000"
ADMINISTRATION = "administration"  # the experiment of what moves aliases, lists and tidies, beside the products' own
MODE = "workflowType=machine_learning"  # the UI opens in its GenAI mode without it
_TAG_LENGTH = 8000  # characters, beyond which MLflow cuts a tag's value
_BATCH = 100  # a store takes at most 100 parameters, 100 tags or 1,000 metrics a call
_DIGEST = 16  # hex digits of a dataset's digest; a store keeps up to 36, the UI shows them all
_LIBRARIES = ("accelerate", "diffusers", "mlflow", "numpy", "torch", "torchmetrics")
_LOG = logging.getLogger(__name__)


def store() -> MlflowClient:
    """Return a client of the store: MLFLOW_TRACKING_URI, else mlflow.db in the working directory."""
    # MLflow's own patience is seven tries, 246 s in which training stands still.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    if not mlflow.is_tracking_uri_set():
        mlflow.set_tracking_uri(f"sqlite:///{Path.cwd() / 'mlflow.db'}")
    try:
        return MlflowClient()
    except MlflowException as error:
        raise InputError(f"tracking store {mlflow.get_tracking_uri()} cannot be used: {_first_line(error)}") from error


def setup(experiment: str) -> str:
    """Choose the store and the experiment, creating what is missing, and return the experiment's id.

    A run that `mlflow run` has opened (MLFLOW_RUN_ID) brings its own experiment, and `experiment` is ignored.

    Raises:
        InputError: the store or the experiment cannot be used.
    """
    client, joined = store(), os.environ.get("MLFLOW_RUN_ID")
    try:
        return client.get_run(joined).info.experiment_id if joined else mlflow.set_experiment(experiment).experiment_id
    except MlflowException as error:
        raise InputError(f"tracking store {mlflow.get_tracking_uri()} cannot be used: {_first_line(error)}") from error


@contextmanager
def run(
    name: str,
    *,
    experiment: str,
    params: Mapping[str, object],
    tags: Mapping[str, str],
    description: str = "",
    parent: str | None = None,
) -> Iterator[Run]:
    """Open a run, or join the one that `mlflow run` opened, and close it truthfully.

    It ends FINISHED, KILLED on safemax.errors.Stopped or FAILED on any other exception, which is raised again.

    Args:
        name: what the UI calls it, such as safemax-digits-forget0-seed0.
        experiment: its experiment, one per product model; see `setup`.
        params: by dotted key (`method.lambda`): `mlflow run` has logged the undotted ones already, as text.
        tags: to filter by.
        description: markdown, the run's note until `Run.note` replaces it.
        parent: id of the run that it is a child of; a child never joins.
    """
    client, experiment_id = store(), setup(experiment)
    if parent:
        experiment_id = client.get_run(parent).info.experiment_id
    joined = None if parent else os.environ.pop("MLFLOW_RUN_ID", None)
    source = {} if joined else {"mlflow.source.name": Path(sys.argv[0]).name, "mlflow.user": getpass.getuser()}
    family = {"mlflow.parentRunId": parent} if parent else {}
    opened = Run(client, joined or client.create_run(experiment_id).info.run_id, experiment_id)
    try:
        client.update_run(opened.id, name=name)
        opened._describe(params, {**source, **_commit(), **family, **tags, "mlflow.note.content": description})
        yield opened
        opened.flush()
        client.set_terminated(opened.id, "FINISHED")
    except BaseException as error:
        opened._fail(error)
        if joined and isinstance(error, Stopped):
            _end_launcher()
        if _away(error):
            where, why = mlflow.get_tracking_uri(), _first_line(error)  # type: ignore[arg-type]
            raise InputError(f"tracking store {where} does not answer; the same command goes on: {why}") from error
        raise


class Run:
    """An open run: what happens is written to the store, metrics in batches.

    Attributes:
        id: the store's id of the run.
        page: its page in the UI, in the mode that shows training runs, as a link within the UI.
        url: the same from elsewhere.
    """

    def __init__(self, client: MlflowClient, run_id: str, experiment_id: str) -> None:
        self.id = run_id
        self._client = client
        self._waiting: list[Metric] = []
        self._before: list[Metric] = []
        self._spool: MetricJournal | None = None
        self._flushed = time.monotonic()
        server = mlflow.get_tracking_uri()
        base = server.rstrip("/") if server.startswith("http") else UI
        self.page = f"#/experiments/{experiment_id}/runs/{run_id}?{MODE}"
        self.url = f"{base}/{self.page}"

    def log(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics by key, at a step or as final values; they reach the store within seconds of the next call."""
        now = int(time.time() * 1000)
        made = [Metric(metric_key(key), float(value), now, step or 0) for key, value in metrics.items()]
        self._waiting += [each for each in self._before if step is None or each.step < step]
        self._before.clear()
        self._waiting += made
        if self._spool and step is not None:
            self._spool.append(made)
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self._try_flush()

    def start_journal(self, folder: Path) -> None:
        """From now on write the metrics of steps to a file beside a job's checkpoint too.

        What processes before this one left there comes into this run as well, up to the first step that it logs itself.
        """
        self._spool = MetricJournal(folder)
        self._before = self._spool.read()

    def delete_journal(self) -> None:
        """Delete that file: the job is over."""
        if self._spool:
            self._spool.clear()
        self._spool = None

    @contextmanager
    def tolerate_outage(self) -> Iterator[None]:
        """Let what is inside fail where the store is away, with a warning: training matters more than a picture of it."""
        try:
            yield
        except (MlflowException, RequestException) as error:
            if not _away(error):
                raise
            _LOG.warning("tracking store unavailable, a picture is lost: %s", _first_line(error))

    def flush(self) -> None:
        """Write the metrics that wait; MlflowException if the store does not take them, and they go on waiting.

        A batch that the store took without saying so is sent again, with the same timestamps: it keeps each metric once.
        """
        while batch := self._waiting[:_BATCH]:
            self._client.log_batch(self.id, metrics=batch)
            del self._waiting[: len(batch)]
        self._flushed = time.monotonic()

    def picture(self, image: Image.Image | Figure, key: str, step: int | None = None) -> str:
        """Log a picture under a key such as samples/forget; return the markdown that shows it in a note or description.

        The charts show it beside other runs' pictures of that key, with a slider over the steps; pictures/KEY.png, and
        with it the markdown, holds the last one.
        """
        drawn = _draw(image) if isinstance(image, Figure) else image
        path = f"pictures/{key}.png"
        self._client.log_image(self.id, drawn, key=key, step=step or 0)
        self._client.log_image(self.id, drawn, artifact_file=path)
        return f"![{key}](get-artifact?run_uuid={self.id}&path={quote(path)})"

    def artifact(self, path: str | Path, folder: str | None = None) -> None:
        """Upload a file or a folder, into a folder of the run's artifacts."""
        self._client.log_artifact(self.id, str(path), folder)

    def json(self, content: Any, name: str) -> None:
        """Log a JSON value as NAME.json."""
        self._client.log_dict(self.id, content, f"{name}.json")

    def table(self, rows: pd.DataFrame, name: str) -> None:
        """Log a table as NAME.json, which the UI renders as one."""
        self._client.log_table(self.id, rows, f"{name}.json")

    def dataset(self, dataset: Dataset, context: str) -> None:
        """Record what data the run used, and for what (`context`: training, evaluation)."""
        features = {
            "name": "images",
            "type": "tensor",
            "tensor-spec": {"dtype": "uint8", "shape": [-1, *dataset.image_shape]},
        }
        sizes = {"train": len(dataset.train.labels), "test": len(dataset.test.labels), "classes": dataset.class_names}
        entity = DatasetEntity(
            name=dataset.name,
            digest=dataset.digest[:_DIGEST],
            source_type="code",
            source=json.dumps({"tags": {"mlflow.source.name": dataset.name}}),
            schema=json.dumps({"mlflow_tensorspec": {"features": json.dumps([features]), "targets": None}}),
            profile=json.dumps(sizes),
        )
        self._client.log_inputs(self.id, [DatasetInput(entity, [InputTag("mlflow.data.context", context)])])

    def note(self, *parts: str) -> None:
        """Replace the note on the run's first screen by parts of markdown, the most important first: a tag may not hold all."""
        shown = [spaced(part) for part in parts]
        while len(shown) > 1 and len("\n\n".join(shown)) > _TAG_LENGTH:
            shown.pop()
        self.tag("mlflow.note.content", "\n\n".join(shown))

    def tag(self, key: str, value: object) -> None:
        """Set a tag."""
        self._client.set_tag(self.id, key, value)

    def _describe(self, params: Mapping[str, object], tags: Mapping[str, str]) -> None:
        bare = [key for key in params if "." not in key]
        if bare:
            raise ValueError(f"parameters need dotted keys, as `mlflow run` logs the bare ones: {bare}")
        facts = {f"env.{key}": value for key, value in {**environment(), "process": _process()}.items()}
        entries = [Param(key, str(value)) for key, value in {**params, **facts}.items()]
        for first in range(0, len(entries), _BATCH):
            self._client.log_batch(self.id, params=entries[first : first + _BATCH])
        self._client.log_batch(self.id, tags=[RunTag(key, str(value)) for key, value in tags.items()])

    def _try_flush(self) -> None:
        try:
            self.flush()
        except MlflowException as error:
            if error.get_http_status_code() < 500:
                raise
            self._flushed = time.monotonic() + 10 * FLUSH_SECONDS
            _LOG.warning("tracking store unavailable, %d metrics wait: %s", len(self._waiting), _first_line(error))

    def _fail(self, error: BaseException) -> None:
        status = "KILLED" if isinstance(error, Stopped) else "FAILED"
        try:
            self._client.set_terminated(self.id, status)
            if status == "FAILED":
                self.tag("failure", f"{type(error).__name__}: {error}")
            self.flush()
        except MlflowException as lost:
            _LOG.warning("run %s, %s, could not be written to its end: %s", self.id, status, _first_line(lost))


def metric_key(key: str) -> str:
    """Return a metric's key as MLflow takes it: names of classes may hold what it does not."""
    return re.sub(r"[^\w/. :-]", "-", key)


def spaced(markdown: str) -> str:
    """Return markdown with space between the columns of its tables, where MLflow's pages leave none."""
    return re.sub(r"(?m)^\|.*[^-:|\s].*\|$", lambda row: row[0].replace(" | ", " |&emsp;"), markdown)


def alive(params: Mapping[str, str]) -> bool:
    """Return whether the process that opened a run lives, by the run's params; True where this machine cannot know."""
    host, pid, started = params.get("env.process", "?/0/0").split("/")
    if host != socket.gethostname():
        return True
    try:
        return abs(psutil.Process(int(pid)).create_time() - int(started)) <= 2  # the clock may have been set since
    except psutil.NoSuchProcess:
        return False


def _end_launcher() -> None:
    """End the `mlflow run` above this process, which would write FAILED over KILLED when its child ends.

    (It asks whether the run has ended by comparing the status's name with numbers.) Another Python program that called
    mlflow.projects.run is spared, and its run ends FAILED.
    """
    with contextlib.suppress(psutil.Error):
        for above in psutil.Process().parents()[:2]:  # bash may stand between
            if ("mlflow", "run") in pairwise(Path(word).name for word in above.cmdline()):
                above.terminate()


def refusal(error: BaseException) -> str | None:
    """Return in a line why the tracking store did not serve, None where an exception is no matter of its."""
    where = without_password(mlflow.get_tracking_uri())
    if isinstance(error, MlflowException) and error.error_code in ("PERMISSION_DENIED", "UNAUTHENTICATED"):
        return f"tracking store {where} refuses: {_first_line(error)}"
    if _away(error):
        return f"tracking store {where} does not answer: {_first_line(error)}"  # type: ignore[arg-type]
    if any(isinstance(each, SQLAlchemyError) for each in chain(error)):
        return f"a database cannot be used (tracking store {where}): {_first_line(error)}"  # type: ignore[arg-type]
    return None


def _away(error: BaseException | None) -> bool:
    """Return whether an exception comes from a server that cannot be reached."""
    return any(isinstance(each, requests.ConnectionError | requests.Timeout) for each in chain(error))


def _commit() -> dict[str, str]:
    """Return the commit of this code and whether it was changed since, as tags; nothing where there is no repository."""

    def ask(*words: str) -> str:
        answer = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True)
        return answer.stdout.strip()

    try:
        if Path(ask("rev-parse", "--show-toplevel")) != ROOT:
            return {}
        commit, dirty = ask("rev-parse", "HEAD"), bool(ask("status", "--porcelain"))
    except (OSError, subprocess.CalledProcessError):
        return {}  # no git, or no repository: an installed package
    return {"mlflow.source.git.commit": commit, "git.dirty": str(dirty).lower()}


def environment() -> dict[str, object]:
    """Return what a repetition needs to know beside the parameters: commit, command, hardware and library versions.

    In runs these are params, since tags would push the note off the first screen.
    """
    commit = _commit()
    return {
        "commit": commit.get("mlflow.source.git.commit", "unknown"),
        "dirty": commit.get("git.dirty", "unknown"),
        "command": without_password(shlex.join(sys.orig_argv)),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: version(name) for name in _LIBRARIES},
    }


def without_password(text: str) -> str:
    """Return text with the password of each address like postgresql://USER:PASSWORD@HOST masked."""
    return re.sub(r"://([^:/@\s]*):[^@\s]*@", r"://\1:***@", text)


def _process() -> str:
    """Return what tells this process from any other, for `alive`."""
    return f"{socket.gethostname()}/{os.getpid()}/{int(psutil.Process().create_time())}"


def _draw(figure: Figure) -> Image.Image:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight")
    return Image.open(buffer)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
