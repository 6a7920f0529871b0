"""What MLflow logging costs: requests and seconds of a demo against a server of its own, by what they are for.

    python -m benchmarks.tracking --steps=300

The parameters are the demo's. Registration is part of it: it reads the uploaded files back and verifies them.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import requests

from pipelines import demo
from safemax.reports.images_and_tables import as_text
from tests.support.mlflow_servers import Server

_IDS = re.compile(r"m-[0-9a-f]{32}|[0-9a-f]{32}|/[0-9]+(?=/|$)")


class Meter:
    """Counts and times every HTTP request of this process."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, float]] = []
        self._send = requests.Session.request

    def __enter__(self) -> Meter:
        meter = self

        def timed(session: requests.Session, method: str, url: str, *args: Any, **options: Any) -> requests.Response:
            started = time.perf_counter()
            try:
                return meter._send(session, method, url, *args, **options)
            finally:
                meter.requests.append((f"{method} {_kind(url)}", time.perf_counter() - started))

        requests.Session.request = timed  # type: ignore[assignment]
        return self

    def __exit__(self, *error: object) -> None:
        requests.Session.request = self._send  # type: ignore[method-assign]

    def table(self) -> pd.DataFrame:
        """Return a row a kind of request: how many and how long, the longest first."""
        frame = pd.DataFrame(self.requests, columns=["request", "seconds"])
        return frame.groupby("request")["seconds"].agg(["count", "sum"]).sort_values("sum", ascending=False)


def _kind(url: str) -> str:
    path = url.partition("//")[2].partition("/")[2].partition("?")[0]
    if "/artifacts/" in path:
        return "artifact of a model" if "/models/" in path else "artifact of a run"
    return _IDS.sub("", path.removeprefix("api/2.0/mlflow/"))


def measure(argv: Sequence[str]) -> str:
    """Run the demo with these parameters against a new server and return the table of its requests."""
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder)).start()
        os.environ["MLFLOW_TRACKING_URI"] = server.address
        try:
            started = time.perf_counter()
            with Meter() as meter:
                demo.demo(argv)
            seconds, frame = time.perf_counter() - started, meter.table()
        finally:
            server.kill()
    spent = frame["sum"].sum()
    total = f"{int(frame['count'].sum())} requests took {spent:.1f} of {seconds:.0f} s ({100 * spent / seconds:.1f} %)"
    return f"{as_text(frame, 2)}\n\n{total}"


if __name__ == "__main__":
    print(measure(sys.argv[1:]))
