"""Open runs: metrics, pictures, files, data sets and notes. Nothing else writes them."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.entities import Dataset as DatasetEntity
from mlflow.entities import DatasetInput, InputTag, Metric
from mlflow.exceptions import MlflowException
from PIL import Image
from requests import RequestException

from pipelines.tracking import pages
from pipelines.tracking.metric_journal import MetricJournal
from pipelines.tracking.mlflow_store import first_line, is_unreachable, metric_key
from pipelines.tracking.pages import spaced
from pipelines.tracking.pictures import picture_link, picture_path, rendered
from safemax.data.dataset import Dataset

FLUSH_SECONDS = 3.0
RESUMED_FROM = "resumed_from"  # tag of a run: the id of the run whose job it goes on with
ADMINISTRATION = "administration"  # the experiment of promotions, rollbacks, listings and clean-ups
_TAG_LENGTH = 8000  # characters; MLflow truncates longer tags
_BATCH = 100  # metrics in a call
DIGEST_LENGTH = 16  # hex digits of a dataset's digest; a store keeps up to 36, the UI shows them all
_LOG = logging.getLogger(__name__)


class Run:
    """An open run, which writes to the store at once, except for metrics, which it sends in batches.

    Attributes:
        id: the store's id of the run.
        experiment_id: of its experiment.
        page: its page in the UI, in the mode that shows training runs, as a link within the UI.
        url: the same page, as a link from outside the UI.
        experiment_url: the page of the experiment's runs, in the view that compares them, as a link from outside the UI.
    """

    def __init__(self, client: MlflowClient, run_id: str, experiment_id: str) -> None:
        self.id = run_id
        self._client = client
        self._pending: list[Metric] = []
        self._earlier: list[Metric] = []  # of the processes that worked on the job before this one
        self._journal: MetricJournal | None = None
        self._tables: list[dict[str, str]] = []
        self._flushed = time.monotonic()
        self.experiment_id = experiment_id
        self.page = pages.run_page(experiment_id, run_id)
        self.url = pages.address(self.page)
        self.experiment_url = pages.address(pages.experiment_page(experiment_id))

    def log(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics by key, at a step or as final values; they reach the store within seconds of the next call."""
        now = int(time.time() * 1000)
        entries = [Metric(metric_key(key), float(value), now, step or 0) for key, value in metrics.items()]
        self._pending += [each for each in self._earlier if step is None or each.step < step]
        self._earlier.clear()
        self._pending += entries
        if self._journal and step is not None:
            self._journal.append(entries)
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self._try_flush()

    def start_journal(self, folder: Path) -> None:
        """From now on also write the metrics of steps to a file beside a job's checkpoint.

        What earlier processes wrote there is logged to this run too, up to the first step that this process logs.
        """
        self._journal = MetricJournal(folder)
        self._earlier = self._journal.read()

    def delete_journal(self) -> None:
        """Delete that file: the job is complete."""
        if self._journal:
            self._journal.clear()
        self._journal = None

    @contextmanager
    def tolerate_outage(self) -> Iterator[None]:
        """Turn the failure of a call inside into a warning if the store does not answer: training matters more than a picture."""
        try:
            yield
        except (MlflowException, RequestException) as error:
            if not is_unreachable(error):
                raise
            _LOG.warning("tracking store unavailable, a picture is lost: %s", first_line(error))

    def flush(self) -> None:
        """Write the pending metrics; MlflowException if the store rejects them, and they stay pending.

        A batch whose acknowledgement was lost is sent again with the same timestamps: the store keeps each metric once.
        """
        while batch := self._pending[:_BATCH]:
            self._client.log_batch(self.id, metrics=batch)
            del self._pending[: len(batch)]
        self._flushed = time.monotonic()

    def picture(self, image: Image.Image | Figure, key: str) -> str:
        """Log a picture as pictures/KEY.png; return the markdown that shows it in a note or description."""
        pixels = rendered(image) if isinstance(image, Figure) else image
        self._client.log_image(self.id, pixels, artifact_file=picture_path(key))
        return picture_link(self.id, key)

    def chart_picture(self, image: Image.Image, key: str, step: int = 0) -> None:
        """Log a picture for the charts, which show it next to other runs' pictures of that key, with a slider over the steps."""
        self._client.log_image(self.id, image, key=key, step=step)

    def artifact(self, path: str | Path, folder: str | None = None) -> None:
        """Upload a file or a folder, into a folder of the run's artifacts."""
        self._client.log_artifact(self.id, str(path), folder)

    def text(self, content: str, name: str) -> None:
        """Log a text as the file NAME."""
        self._client.log_text(self.id, content, name)

    def json(self, content: Any, name: str) -> None:
        """Log a JSON value as NAME.json."""
        self._client.log_dict(self.id, content, f"{name}.json")

    def parameters(self, record: Mapping[str, Any]) -> None:
        """Log a command line's parameters: with their sources as parameters.json, and as config.yaml, which repeats the run.

        A caller that has none logs nothing.
        """
        if record:
            self.json(record, "parameters")
            values = {name: each["value"] for name, each in record.items()}
            self._client.log_text(self.id, yaml.safe_dump(values, sort_keys=False, allow_unicode=True), "config.yaml")

    def table(self, rows: pd.DataFrame, name: str) -> None:
        """Log a table as NAME.json, which the UI renders as one."""
        # client.log_table would list and download what is there, and append to it.
        self._client.log_text(self.id, rows.to_json(orient="split", index=False, double_precision=15), f"{name}.json")
        entry = {"path": f"{name}.json", "type": "table"}
        if entry not in self._tables:
            self._tables.append(entry)
            self.tag("mlflow.loggedArtifacts", json.dumps(self._tables))

    def dataset(self, dataset: Dataset, context: str) -> None:
        """Record the data that the run used, and its purpose (`context`: training or evaluation)."""
        features = {
            "name": "images",
            "type": "tensor",
            "tensor-spec": {"dtype": "uint8", "shape": [-1, *dataset.image_shape]},
        }
        sizes = {"train": len(dataset.train.labels), "test": len(dataset.test.labels), "classes": dataset.class_names}
        entity = DatasetEntity(
            name=dataset.name,
            digest=dataset.digest[:DIGEST_LENGTH],
            source_type="code",
            source=json.dumps({"tags": {"mlflow.source.name": dataset.name}}),
            schema=json.dumps({"mlflow_tensorspec": {"features": json.dumps([features]), "targets": None}}),
            profile=json.dumps(sizes),
        )
        self._client.log_inputs(self.id, [DatasetInput(entity, [InputTag("mlflow.data.context", context)])])

    def note(self, *parts: str) -> None:
        """Replace the note on the run's first screen by parts of markdown, dropping the last ones if a tag cannot hold all."""
        shown = [spaced(part) for part in parts]
        while len(shown) > 1 and len("\n\n".join(shown)) > _TAG_LENGTH:
            shown.pop()
        self.tag("mlflow.note.content", "\n\n".join(shown))

    def tag(self, key: str, value: object) -> None:
        """Set a tag."""
        self._client.set_tag(self.id, key, value)

    def resumes(self, earlier: str) -> None:
        """Record whose job this run goes on with: that of an earlier run; nothing where it is this run, or there is none."""
        if earlier and earlier != self.id:
            self.tag(RESUMED_FROM, earlier)

    def _try_flush(self) -> None:
        try:
            self.flush()
        except MlflowException as error:
            if error.get_http_status_code() < 500:
                raise
            self._flushed = time.monotonic() + 10 * FLUSH_SECONDS
            _LOG.warning("tracking store unavailable, %d metrics pending: %s", len(self._pending), first_line(error))
