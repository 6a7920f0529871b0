"""Pictures of attacks: success by effort, and what was drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, ImageDraw
from torch import Tensor

from safemax.attacks.base import Attack, AttackResult
from safemax.data.batches import to_float
from safemax.evaluation.attack_results import AttackComparison
from safemax.reports.images_and_tables import grid

COLOURS = {"model": "#b3123b", "base": "#8a8f98", "gold": "#c98a00"}
SHOWN_PER_TRIAL = 5  # images of a trial and a model in the picture
TILE = 0.38  # inches of each


def attack_figure(attack: Attack, comparison: AttackComparison) -> Figure:
    """Return a picture of an attack: success by effort, a curve a model, and under it what was drawn, a row a trial."""
    variants, results = list(comparison.model.success), comparison.present()
    columns, rows = len(results) * SHOWN_PER_TRIAL, len(comparison.model.cells)
    below = TILE * rows + 0.5
    size = (max(2.6 * len(variants), TILE * columns + 2), 2.8 + below)
    figure = Figure(figsize=size, dpi=100, layout="compressed")
    curves, images = figure.subfigures(2, 1, squeeze=False, height_ratios=[2.8, below])[:, 0]
    for axis, variant in zip(curves.subplots(1, len(variants), squeeze=False)[0], variants, strict=True):
        _curves(axis, variant, type(attack).axis.get(variant, ""), results)
    curves.get_axes()[0].legend(frameon=False, fontsize=8)
    axes = images.subplots(1, len(results), squeeze=False)[0]
    for axis, (who, result) in zip(axes, results.items(), strict=True):
        _samples(axis, who, result, labelled=who == "model")
    return figure


def tile_sheet(images: Tensor, columns: int) -> Image.Image:
    """Return images (N, C, H, W) in [-1, 1] as one picture, its tiles separated by grey lines, noise from noise too."""
    picture = grid(images, columns)
    lines, step = ImageDraw.Draw(picture), picture.width // columns
    tall = picture.height // math.ceil(len(images) / columns)
    for x in range(0, picture.width + 1, step):
        lines.line([(x, 0), (x, picture.height)], fill="#7d8590", width=3)
    for y in range(0, picture.height + 1, tall):
        lines.line([(0, y), (picture.width, y)], fill="#7d8590", width=3)
    return picture


def _curves(axis: Axes, variant: str, label: str, results: Mapping[str, AttackResult]) -> None:
    """Draw the shares of a variant's trials, evenly spaced: steps and scales double rather than add."""
    ticks: list[float] = []
    for who, result in results.items():
        cells = [cell for cell in result.cells if cell.variant == variant]
        ticks = ticks or [cell.x for cell in cells]
        share = np.array([cell.recognised for cell in cells])
        reach = [share - [c.low for c in cells], [c.high for c in cells] - share]
        axis.errorbar(
            range(len(cells)), share, np.clip(reach, 0, None), color=COLOURS[who], label=who,
            marker="o", markersize=4, capsize=2, linewidth=1.5,
        )  # fmt: skip
    axis.set(title=variant, xlabel=label, ylim=(-4, 104), xlim=(-0.5, len(ticks) - 0.5))
    axis.set_xticks(range(len(ticks)), [f"{x:g}" for x in ticks])
    axis.set_ylabel("recognised, %")
    axis.spines[["top", "right"]].set_visible(False)


def _samples(axis: Axes, who: str, result: AttackResult, *, labelled: bool) -> None:
    picture = tile_sheet(to_float(result.pictures[:, :SHOWN_PER_TRIAL].flatten(0, 1)), SHOWN_PER_TRIAL)
    axis.imshow(np.asarray(picture), interpolation="nearest")
    axis.set_title(who, fontsize=10, color=COLOURS[who])
    axis.set_xticks([])
    axis.set_yticks([])
    if labelled:
        rows = len(result.cells)
        names = [f"{cell.variant} {cell.x:g}" for cell in result.cells]
        axis.set_yticks([(i + 0.5) * picture.height / rows for i in range(rows)], names, fontsize=7)
