"""A job's metrics on disk, beside its checkpoint: JSON lines, only ever appended, for the process that resumes the job."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from mlflow.entities import Metric

NAME = "metrics.jsonl"


class MetricJournal:
    """The metrics of every process that worked on a job.

    A line reaches the kernel before `append` returns: a kill loses nothing, a power cut the last seconds. A step that was
    repeated after a kill has two lines, of which the last counts. Damaged lines are passed over.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        folder.mkdir(parents=True, exist_ok=True)
        self._terminate_last_line()

    def append(self, metrics: Sequence[Metric]) -> None:
        """Append a line for each metric."""
        lines = [json.dumps([each.key, each.value, each.timestamp, each.step]) + "\n" for each in metrics]
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(lines)

    def read(self) -> list[Metric]:
        """Return the last value of each metric at each step, in the order of the steps."""
        last: dict[tuple[str, int], Metric] = {}
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines() if self.path.exists() else ():
            metric = _metric(line)
            if metric is not None:
                last[metric.key, metric.step] = metric
        return sorted(last.values(), key=lambda each: each.step)

    def clear(self) -> None:
        """Delete the file: the job is complete and its run has the metrics."""
        self.path.unlink(missing_ok=True)

    def _terminate_last_line(self) -> None:
        """End a line that a kill cut, so that the next one starts on its own."""
        if self.path.exists() and not self.path.read_bytes().endswith(b"\n"):
            with self.path.open("a", encoding="utf-8") as file:
                file.write("\n")


def _metric(line: str) -> Metric | None:
    """Return the metric of a line, None for a line that a kill cut or a disk damaged."""
    try:
        key, value, timestamp, step = json.loads(line)
    except (ValueError, TypeError, RecursionError):
        return None
    whole = all(isinstance(each, int) and abs(each) < 2**63 for each in (timestamp, step))
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return Metric(key, value, timestamp, step) if whole and number and isinstance(key, str) else None
