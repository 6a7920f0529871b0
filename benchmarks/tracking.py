"""What MLflow costs in a demo: seconds inside its calls as a share of the correction's time, and requests to its server.

    python -m benchmarks.tracking                      (SQLite, as `make demo` has it)
    python -m benchmarks.tracking server --steps=300   (a tracking server of its own; also counts its requests)

Further parameters are the demo's. Calls and time are of the correction alone, in the same run: the training of the base, which
takes most of a first demo, is left out of both. Requests are of the whole demo. Registration is part of it: it uploads a version's
files, reads them back and verifies them.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import mlflow
import pandas as pd
import requests
from mlflow import MlflowClient

from pipelines import demo
from safemax.reports.images_and_tables import as_text
from tests.support.mlflow_servers import Server

_IDS = re.compile(r"m-[0-9a-f]{32}|[0-9a-f]{32}|/[0-9]+(?=/|$)")
_METHODS = [name for name, _ in inspect.getmembers(MlflowClient, inspect.isfunction) if not name.startswith("_")]
ENTRANCES = [
    *((MlflowClient, name) for name in _METHODS),
    (mlflow.artifacts, "download_artifacts"),
    (mlflow.pyfunc, "save_model"),
]
# What logs to a run; the other calls read and register versions.
LOGGING = frozenset({
    *("create_run", "get_run", "update_run", "set_terminated", "set_tag", "log_batch", "log_inputs"),
    *("log_text", "log_dict", "log_image", "log_artifact"),
})  # fmt: skip


class Calls:
    """Counts and times this process's calls of MLflow; a call that MLflow makes itself belongs to the one that made it."""

    def __init__(self) -> None:
        self.seconds: list[tuple[str, float]] = []
        self._is_inside = False
        self._originals = [(owner, name, getattr(owner, name)) for owner, name in ENTRANCES]

    def __enter__(self) -> Calls:
        for owner, name, call in self._originals:
            setattr(owner, name, self._timed(name, call))
        return self

    def __exit__(self, *error: type[BaseException] | BaseException | TracebackType | None) -> None:
        for owner, name, call in self._originals:
            setattr(owner, name, call)

    def _timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **options: Any) -> Any:
            if self._is_inside:
                return call(*args, **options)
            self._is_inside, started = True, time.perf_counter()
            try:
                return call(*args, **options)
            finally:
                self.seconds.append((name, time.perf_counter() - started))
                self._is_inside = False

        return timed

    @contextmanager
    def ignored(self) -> Iterator[None]:
        """Leave out the calls inside."""
        before = len(self.seconds)
        try:
            yield
        finally:
            del self.seconds[before:]


class Requests:
    """Counts and times every HTTP request of this process."""

    def __init__(self) -> None:
        self.seconds: list[tuple[str, float]] = []
        self._send = requests.Session.request

    def __enter__(self) -> Requests:
        meter = self

        def timed(session: requests.Session, method: str, url: str, *args: Any, **options: Any) -> requests.Response:
            started = time.perf_counter()
            try:
                return meter._send(session, method, url, *args, **options)
            finally:
                meter.seconds.append((f"{method} {_kind(url)}", time.perf_counter() - started))

        requests.Session.request = timed  # type: ignore[assignment]
        return self

    def __exit__(self, *error: type[BaseException] | BaseException | TracebackType | None) -> None:
        requests.Session.request = self._send  # type: ignore[method-assign]


def _kind(url: str) -> str:
    path = url.partition("//")[2].partition("/")[2].partition("?")[0]
    if "/artifacts/" in path:
        return "artifact of a model" if "/models/" in path else "artifact of a run"
    return _IDS.sub("", path.removeprefix("api/2.0/mlflow/"))


def table(seconds: Sequence[tuple[str, float]], what: str) -> pd.DataFrame:
    """Return a row a kind of call or request: how many and how long, the longest first."""
    frame = pd.DataFrame(seconds, columns=[what, "seconds"])
    return frame.groupby(what)["seconds"].agg(["count", "sum"]).sort_values("sum", ascending=False)


def run_demo(argv: Sequence[str]) -> tuple[Calls, Requests, float]:
    """Run the demo with these parameters; return its correction's calls, all its requests, and the correction's seconds."""
    train, base_seconds = demo.train_base, 0.0

    def train_aside(*args: Any, **options: Any) -> str:
        nonlocal base_seconds
        began = time.perf_counter()
        with calls.ignored():
            address = train(*args, **options)
        base_seconds = time.perf_counter() - began
        return address

    with Calls() as calls, Requests() as sent:
        demo.train_base, started = train_aside, time.perf_counter()
        try:
            demo.demo(argv)
        finally:
            demo.train_base = train
        return calls, sent, time.perf_counter() - started - base_seconds


def measure(argv: Sequence[str]) -> str:
    """Run the demo in a new store and return what MLflow cost; a first word `server` gives the store a server."""
    has_server, words = argv[:1] == ["server"], argv[1:] if argv[:1] == ["server"] else argv
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder)).start() if has_server else None
        os.environ["MLFLOW_TRACKING_URI"] = server.address if server else f"sqlite:///{folder}/mlflow.db"
        os.chdir(folder)
        try:
            calls, sent, seconds = run_demo(words)
        finally:
            if server:
                server.kill()
    return "\n\n".join(_report(calls, sent, seconds))


def _report(calls: Calls, sent: Requests, seconds: float) -> Iterator[str]:
    frame = table(calls.seconds, "call")
    yield as_text(frame, 2)
    if sent.seconds:
        asked = table(sent.seconds, "request")
        yield as_text(asked, 2)
        yield f"the whole demo: {int(asked['count'].sum())} requests, {asked['sum'].sum():.1f} s"
    logs = frame[frame.index.isin(LOGGING)]
    for name, part in (("logging to runs", logs), ("versions", frame.drop(logs.index)), ("both", frame)):
        spent = part["sum"].sum()
        counts = f"{int(part['count'].sum())} calls, {spent:.2f} of {seconds:.0f} s"
        yield f"the correction, {name}: {counts} ({100 * spent / seconds:.2f} %)"


if __name__ == "__main__":
    print(measure(sys.argv[1:]))
