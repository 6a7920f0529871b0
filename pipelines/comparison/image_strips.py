"""The pictures of a comparison, put together from the strips of images that its children kept."""

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
from safemax.evaluation.measure import Evaluation
from safemax.reports import comparison_figures

Strips = Mapping[tuple[str, str], Tensor]


@dataclass(frozen=True)
class StripLayout:
    """How many images of each class a strip has: the forgotten class's come first."""

    forgotten: int
    other: int
    num_classes: int

    @classmethod
    def of(cls, evaluation: Evaluation, num_classes: int) -> StripLayout:
        """Return the blocks of the strips that an evaluation leaves."""
        forget, retain = evaluation.counts
        return cls(min(STRIP, forget), min(OTHERS, retain), num_classes)


def read(rows: pd.DataFrame, labels: Sequence[str]) -> Strips:
    """Return the strip of each variant and forgotten class, (N, C, H, W) in [-1, 1], of the first seed."""
    first = rows[rows["variant"].isin(labels)].sort_values("seed").drop_duplicates(["variant", "forget"])
    first = first.assign(order=first["variant"].map({each: i for i, each in enumerate(labels)})).sort_values("order")
    found = {}
    for row in first.itertuples():
        name = "base" if row.variant == BASE else "corrected"
        strip = _download(str(row.run), name)
        if strip is not None:
            found[str(row.variant), str(row.forget)] = strip
    return found


def overview(strips: Strips, comparison: Comparison, blocks: StripLayout) -> Figure:
    """Return Figure 2: a row a model, two images of each class where that class is the forgotten one."""
    shown = min(2, blocks.forgotten)
    names = [name for name in comparison.class_names if any(key[1] == name for key in strips)]
    labels = list(dict.fromkeys(label for label, _ in strips))
    blank = torch.ones(shown, *comparison.dataset.image_shape)
    images = {
        label: torch.cat([strips[label, name][:shown] if (label, name) in strips else blank for name in names])
        for label in labels
    }
    return comparison_figures.rows(images, names, [shown] * len(names), range(len(names)))


def of_class(strips: Strips, comparison: Comparison, blocks: StripLayout, k: int) -> Figure | None:
    """Return a grid of Figures 4 to 13: a row a model, the forgotten class before the others; None where nothing is kept."""
    names = comparison.dataset.class_names
    images = {label: strip for (label, name), strip in strips.items() if name == names[k]}
    if not images:
        return None
    titles = [names[k], *(name for other, name in enumerate(names) if other != k)]
    return comparison_figures.rows(images, titles, [blocks.forgotten, *[blocks.other] * (blocks.num_classes - 1)], (0,))


def _download(run_id: str, name: str) -> Tensor | None:
    with tempfile.TemporaryDirectory() as scratch:
        try:
            path = tracking.store().download_artifacts(run_id, f"strips/{name}.png", scratch)
        except (MlflowException, OSError):  # the artifacts were removed; the metrics still stand
            return None
        pixels = np.asarray(Image.open(Path(path)))
    row = torch.from_numpy(pixels.copy()).view(pixels.shape[0], pixels.shape[1], -1).permute(2, 0, 1)  # C, H, N * H
    return to_float(torch.stack(row.split(row.shape[1], dim=2)))
