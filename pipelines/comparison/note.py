"""How far a comparison is, in words: the note of its run while children run, with the standings so far."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import pandas as pd

from pipelines.comparison.plan import Comparison
from safemax import metric_keys as keys
from safemax.reports.images_and_tables import as_markdown
from safemax.reports.numbers import counted, duration, quantity

PATIENCE = 30.0  # seconds between two notes
_SCORES = {"UA_reject, %": (keys.UA_REJECT, "%"), "FID": (keys.FID_JUDGE, "")}


class ComparisonNote:
    """How far a comparison is, for its run.

    Args:
        comparison: what is compared.
        size: children in all, gold models included.
    """

    def __init__(self, comparison: Comparison, size: int) -> None:
        self.comparison, self.size, self.ended = comparison, size, 0
        self._rows: list[dict[str, Any]] = []
        self._started, self._ended_before, self._noted = time.perf_counter(), 0, -math.inf

    def add_finished(self, label: str, metrics: Mapping[str, float]) -> None:
        """Count a child that an earlier comparison finished."""
        self._ended_before += 1
        self.add(label, metrics)

    def add(self, label: str, metrics: Mapping[str, float]) -> None:
        """Count a child that has ended; no metrics where it failed or is a gold model."""
        self.ended += 1
        if keys.UA_REJECT in metrics:
            self._rows.append({"variant": label, **{name: metrics[key] for name, (key, _) in _SCORES.items()}})

    def is_due(self) -> bool:
        """Return whether the last note is old, and take this one as written."""
        if time.monotonic() - self._noted < PATIENCE:
            return False
        self._noted = time.monotonic()
        return True

    def text(self) -> str:
        """Return the markdown of the note."""
        opening = f"**Comparison under way**: {self.ended} of {self.size} runs ended{self._left()}."
        if not self._rows:
            return f"{opening} {begun(self.comparison)}"
        frame = pd.DataFrame(self._rows).groupby("variant", sort=False)
        means, counts = frame.mean(), frame.size()
        text = {name: [quantity(value, unit) for value in means[name]] for name, (_, unit) in _SCORES.items()}
        shown = pd.DataFrame({"runs": counts.astype(str).tolist(), **text}, index=means.index)
        return f"{opening}\n\nMeans so far (UA_reject: higher is better, FID: lower):\n\n{as_markdown(shown)}"

    def _left(self) -> str:
        here = self.ended - self._ended_before
        if not here or self.ended >= self.size:
            return ""
        minutes = (time.perf_counter() - self._started) / 60
        return f", about {duration(minutes / here * (self.size - self.ended))} left"


def begun(comparison: Comparison) -> str:
    """Return what is compared, in a sentence: the note before any child has ended."""
    methods = ", ".join(each.label for each in comparison.variants)
    classes = counted(len(comparison.classes), "class")
    return f"{methods} on {classes}, {counted(comparison.options.seeds, 'seed')}. Judges and priors are made first."
