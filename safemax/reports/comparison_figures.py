"""The figures of a comparison: latent states by step, samples a row a method, the ablation of lambda, tables as pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from safemax.reports.images_and_tables import grid

FORGOTTEN = "crimson"
WIDE = 20.0


def latents_figure(entropy: Tensor, overlap: Tensor) -> Figure:
    """Return Figure 1: entropy (T,) in nats a dimension and class overlap (T,) in [0, 1] of latent states over t."""
    figure = Figure(figsize=(7.2, 2.9), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    for axis, values, label in (
        (left, entropy, "entropy of x_t, nats a dimension"),
        (right, overlap, "overlap of two classes' x_t"),
    ):
        axis.plot(values.numpy())
        axis.set(xlabel="t", ylabel=label)
    return figure


def samples_figure(
    images: Mapping[str, Tensor], titles: Sequence[str], widths: Sequence[int], forgotten: Sequence[int]
) -> Figure:
    """Return a figure with a row a model, from identical starting noise.

    Args:
        images: (N, C, H, W) in [-1, 1] of each model, N = sum of widths.
        titles: above the blocks of columns.
        widths: columns of each block.
        forgotten: indices of the blocks whose title is red.
    """
    sheets = {name: np.asarray(grid(each, sum(widths))) for name, each in images.items()}
    height, width = next(iter(sheets.values())).shape[:2]
    figure = Figure(
        figsize=(1.6 + width / 100, 0.5 + len(sheets) * (height / 100 + 0.06)), dpi=100, layout="compressed"
    )
    axes = figure.subplots(len(sheets), 1, squeeze=False)[:, 0]
    for axis, (name, sheet) in zip(axes, sheets.items(), strict=True):
        axis.imshow(sheet, interpolation="nearest")
        axis.set_xticks([])
        axis.set_yticks([height / 2], [name], fontsize=8)
        axis.tick_params(length=0)
    _blocks(axes[0], titles, widths, forgotten, width)
    return figure


def _blocks(axis: Axes, titles: Sequence[str], widths: Sequence[int], forgotten: Sequence[int], width: int) -> None:
    """Title the blocks of columns above an axis."""
    column, starts = width / sum(widths), np.cumsum([0, *widths[:-1]])
    centres = [column * (start + wide / 2) for start, wide in zip(starts, widths, strict=True)]
    axis.set_xticks(centres, list(titles), fontsize=8)
    axis.xaxis.tick_top()
    axis.tick_params(length=0)
    for block in forgotten:
        axis.get_xticklabels()[block].set(color=FORGOTTEN, fontweight="bold")


def standings_figure(runs: pd.DataFrame, columns: Mapping[str, str], variants: Sequence[str]) -> Figure:
    """Return a row a variant and an axis a value: every class as a light dot, their mean as a dark one.

    An axis, but for percent, whose largest value is WIDE times its smallest is logarithmic: one ruined model would flatten
    all others.

    Args:
        runs: a row a run: variant, forget, and metrics by key.
        columns: the metric's key of each axis, by the axis's label.
        variants: from the top down.
    """
    figure = Figure(figsize=(2.0 + 2.6 * len(columns), 0.8 + 0.24 * len(variants)), dpi=110, layout="constrained")
    axes = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    by_class = runs.groupby(["variant", "forget"])[list(columns.values())].mean()
    for axis, (label, metric) in zip(axes, columns.items(), strict=True):
        for y, variant in enumerate(variants):
            values = by_class.loc[variant, metric].dropna()
            axis.plot(values, [y] * len(values), "o", color="tab:blue", alpha=0.3, markersize=4, markeredgewidth=0)
            axis.plot(values.mean(), y, "o", color="navy", markersize=6)
        axis.set_xlabel(label)
        axis.grid(axis="y", linewidth=0.3)
        least, most = by_class[metric].min(), by_class[metric].max()
        if not label.endswith("%") and least > 0 and most > WIDE * least:
            axis.set_xscale("log")
    axes[0].set_yticks(range(len(variants)), list(variants), fontsize=8)
    axes[0].invert_yaxis()
    return figure


def ablation_figure(points: pd.DataFrame, class_name: str) -> Figure:
    """Return Figure 3: UA_reject and retained FID over lambda, as the paper has it and at equal effective retain weight.

    Args:
        points: weighting, lambda, seed, ua (percent), fid; a row a run.
        class_name: the forgotten class.
    """
    figure = Figure(figsize=(7.2, 3.1), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    for axis, value, label in ((left, "ua", "UA_reject, %"), (right, "fid", "FID of retained classes")):
        for weighting, rows in points.groupby("weighting", sort=False):
            means = rows.groupby("lambda")[value].agg(["mean", "std"]).fillna(0)
            axis.errorbar(means.index, means["mean"], yerr=means["std"], marker="o", capsize=3, label=weighting)
        axis.set(xlabel="lambda", ylabel=label)
    left.set_ylim(-5, 105)
    right.legend(fontsize=8)
    figure.suptitle(f"forgotten: {class_name}", fontsize=9)
    return figure


def table_figure(frame: pd.DataFrame, title: str, remark: str = "") -> Figure:
    """Return a table of text as a picture."""
    cells = [[str(name), *row] for name, row in zip(frame.index, frame.to_numpy().tolist(), strict=True)]
    head = [str(frame.index.name or ""), *(str(each).replace(" ", "\n", 1) for each in frame.columns)]
    widths = [max(len(line) for cell in (name, *column) for line in cell.split("\n")) + 2
              for name, column in zip(head, zip(*cells, strict=True), strict=True)]  # fmt: skip
    figure = Figure(figsize=(0.075 * sum(widths) + 0.2, 0.22 * len(cells) + 0.9), dpi=140)
    axis = figure.subplots()
    axis.set_axis_off()
    axis.set_title(title, fontsize=8)
    drawn = axis.table(
        cells, colLabels=head, colWidths=[w / sum(widths) for w in widths], cellLoc="right", loc="upper center"
    )
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(7)
    for (row, _), cell in drawn.get_celld().items():
        cell.set(linewidth=0.3, height=(2.2 if row == 0 else 1.0) * 0.9 / (len(cells) + 2.2))
    figure.text(0.02, 0.01, remark, fontsize=6)
    return figure
