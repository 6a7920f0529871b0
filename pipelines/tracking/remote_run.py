"""A run that another process opened: a worker sends what it would write, and the process that opened the run writes it."""

from __future__ import annotations

import base64
import io
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from pipelines.tracking.pictures import picture_link, rendered
from pipelines.tracking.runs import Run
from safemax.data.dataset import Dataset

CALL = "run"  # kind of the messages


class RemoteRun(Run):
    """What a worker has of a run: an id, and a way to send JSON to the process that opened it.

    Args:
        run_id: of the run.
        send: sends a message.
    """

    def __init__(self, run_id: str, send: Callable[[dict[str, Any]], object]) -> None:
        self.id, self._send, self._tolerant = run_id, send, False
        self.page = self.url = self.experiment_url = self.experiment_id = ""

    def log(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._call("log", metrics={key: float(value) for key, value in metrics.items()}, step=step)

    def start_journal(self, folder: Path) -> None:
        self._call("start_journal", folder=str(folder))

    def delete_journal(self) -> None:
        self._call("delete_journal")

    @contextmanager
    def tolerate_outage(self) -> Iterator[None]:
        self._tolerant = True
        try:
            yield
        finally:
            self._tolerant = False

    def flush(self) -> None:
        self._call("flush")

    def picture(self, image: Image.Image | Figure, key: str) -> str:
        self._call("picture", png=_png(rendered(image) if isinstance(image, Figure) else image), key=key)
        return picture_link(self.id, key)

    def chart_picture(self, image: Image.Image, key: str, step: int = 0) -> None:
        self._call("chart_picture", png=_png(image), key=key, step=step)

    def artifact(self, path: str | Path, folder: str | None = None) -> None:
        content = base64.b64encode(Path(path).read_bytes()).decode()
        self._call("artifact", content=content, name=Path(path).name, folder=folder)

    def text(self, content: str, name: str) -> None:
        self._call("text", content=content, name=name)

    def json(self, content: Any, name: str) -> None:
        self._call("json", content=content, name=name)

    def table(self, rows: pd.DataFrame, name: str) -> None:
        self._call("table", columns=list(map(str, rows.columns)), rows=rows.to_numpy(dtype=object).tolist(), name=name)

    def dataset(self, dataset: Dataset, context: str) -> None:
        raise NotImplementedError("the process that opened the run has the data and records them")

    def tag(self, key: str, value: object) -> None:
        self._call("tag", key=key, value=str(value))

    def _call(self, method: str, **given: Any) -> None:
        self._send({"kind": CALL, "method": method, "tolerant": self._tolerant, "given": given})


def write(run: Run, message: Mapping[str, Any]) -> None:
    """Do to an open run what a worker's message says."""
    given = message["given"]
    with run.tolerate_outage() if message["tolerant"] else nullcontext():
        match message["method"]:
            case "picture":
                run.picture(_image(given["png"]), given["key"])
            case "chart_picture":
                run.chart_picture(_image(given["png"]), given["key"], given["step"])
            case "table":
                run.table(pd.DataFrame(given["rows"], columns=given["columns"]), given["name"])
            case "start_journal":
                run.start_journal(Path(given["folder"]))
            case "artifact":
                _upload(run, **given)
            case "log" | "tag" | "json" | "text" | "flush" | "delete_journal" as simple:
                getattr(run, simple)(**given)
            case other:
                raise ValueError(f"a worker asked for {other!r}, which is no method of a run")


def _png(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return base64.b64encode(buffer.getvalue()).decode()


def _image(png: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(png)))


def _upload(run: Run, content: str, name: str, folder: str | None) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / Path(name).name
        path.write_bytes(base64.b64decode(content))
        run.artifact(path, folder)
