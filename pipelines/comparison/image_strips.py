"""The pictures of a comparison, made from the strips of images that its children logged."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from mlflow.exceptions import MlflowException
from PIL import Image
from torch import Tensor

from pipelines import tracking
from pipelines.comparison.job import OTHERS, STRIP
from pipelines.comparison.plan import BASE, Comparison
from safemax.data.batches import to_float
from safemax.evaluation.protocol import Evaluation
from safemax.reports import comparison_figures

Strips = Mapping[tuple[str, str], Tensor]


@dataclass(frozen=True)
class StripLayout:
    """How many images of each class a strip has; the forgotten class comes first."""

    forgotten: int
    other: int
    num_classes: int

    @classmethod
    def of(cls, evaluation: Evaluation, num_classes: int) -> StripLayout:
        """Return the layout of the strips that children with this evaluation log."""
        forget, retain = evaluation.counts
        return cls(min(STRIP, forget), min(OTHERS, retain), num_classes)


def read(rows: pd.DataFrame, labels: Sequence[str]) -> Strips:
    """Return the first seed's strip of each variant and forgotten class, (N, C, H, W) in [-1, 1]."""
    first = rows[rows["variant"].isin(labels)].sort_values("seed").drop_duplicates(["variant", "forget"])
    first = first.assign(order=first["variant"].map({each: i for i, each in enumerate(labels)})).sort_values("order")
    strips = {}
    for row in first.itertuples():
        name = "base" if row.variant == BASE else "corrected"
        strip = _download(str(row.run), name)
        if strip is not None:
            strips[str(row.variant), str(row.forget)] = strip
    return strips


def overview(strips: Strips, comparison: Comparison, layout: StripLayout) -> Figure:
    """Return Figure 2: one row per model, with two images of each class, each drawn where that class was forgotten."""
    shown = min(2, layout.forgotten)
    names = [name for name in comparison.class_names if any(key[1] == name for key in strips)]
    labels = list(dict.fromkeys(label for label, _ in strips))
    blank = torch.ones(shown, *comparison.dataset.image_shape)
    images = {
        label: torch.cat([strips[label, name][:shown] if (label, name) in strips else blank for name in names])
        for label in labels
    }
    return comparison_figures.samples_figure(images, names, [shown] * len(names), range(len(names)))


def of_class(strips: Strips, comparison: Comparison, layout: StripLayout, k: int) -> Figure | None:
    """Return a grid as in Figures 4 to 13: one row per model, the forgotten class first; None where no strip is left."""
    names = comparison.dataset.class_names
    images = {label: strip for (label, name), strip in strips.items() if name == names[k]}
    if not images:
        return None
    titles = [names[k], *(name for other, name in enumerate(names) if other != k)]
    return comparison_figures.samples_figure(
        images, titles, [layout.forgotten, *[layout.other] * (layout.num_classes - 1)], (0,)
    )


def _download(run_id: str, name: str) -> Tensor | None:
    with tempfile.TemporaryDirectory() as scratch:
        try:
            path = tracking.store().download_artifacts(run_id, f"strips/{name}.png", scratch)
        except (MlflowException, OSError):  # the artifacts were removed; the metrics are still valid
            return None
        pixels = np.asarray(Image.open(Path(path)))
    row = torch.from_numpy(pixels.copy()).view(pixels.shape[0], pixels.shape[1], -1).permute(2, 0, 1)  # C, H, N * H
    return to_float(torch.stack(row.split(row.shape[1], dim=2)))
