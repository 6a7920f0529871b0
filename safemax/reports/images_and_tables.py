"""Pictures and tables that people look at first: base next to corrected, sample grids, metrics side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from safemax.data.batches import to_float, to_uint8
from safemax.evaluation.metric_info import meaning
from safemax.evaluation.protocol import Evaluation
from safemax.evaluation.samples import SHOWN_PER_CLASS, Samples
from safemax.reports.numbers import change, quantity

TILE = 40  # least pixels of an image's side in a picture: 8x8 digits are enlarged five times


FORGOTTEN = "crimson"
_FONT = 15  # pixels


@dataclass(frozen=True)
class Panel:
    """One block of a comparison: a title, images (N, C, H, W) in [-1, 1] and their labels (N,)."""

    title: str
    images: Tensor
    labels: Tensor


def labelled_sheet(rows: Mapping[str, Tensor], title: str, forget: int) -> Image.Image:
    """Return images in rows with names before them and a title above: a square picture that explains itself.

    Square, with the rows at the top, since MLflow's charts centre a picture in a square of which they show the upper half.

    Args:
        rows: images (N, C, H, W) in [-1, 1] by name, from the top down.
        title: such as: step 150 of 300.
        forget: how many of the first rows are of forgotten classes, whose names are red.
    """
    columns = max(map(len, rows.values()))
    strips = [grid(each, columns) for each in rows.values()]
    font = ImageFont.load_default(_FONT)
    left = 2 * _FONT + max(int(font.getlength(name)) for name in rows)
    head, height = 2 * _FONT, strips[0].height
    side = max(left + strips[0].width, head + height * len(strips), _FONT + int(font.getlength(title)))
    sheet = Image.new("RGB", (side, side), "white")
    write = ImageDraw.Draw(sheet)
    write.text((_FONT // 2, _FONT // 2), title, fill="black", font=font)
    for i, (name, strip) in enumerate(zip(rows, strips, strict=True)):
        top = head + i * height
        sheet.paste(strip, (left, top))
        colour = FORGOTTEN if i < forget else "black"
        write.text((_FONT // 2, top + height // 2), name, fill=colour, font=font, anchor="lm")
    return sheet


def grid(images: Tensor, columns: int) -> Image.Image:
    """Return images (N, C, H, W) in [-1, 1] as one picture, row by row, enlarged without blurring."""
    scale = max(1, math.ceil(TILE / images.shape[-1]))
    pixels = to_uint8(images).repeat_interleave(scale, -1).repeat_interleave(scale, -2)
    pixels = torch.nn.functional.pad(pixels, (1, 1, 1, 1), value=255)
    rows = math.ceil(len(pixels) / columns)
    blank = torch.full((rows * columns - len(pixels), *pixels.shape[1:]), 255, dtype=torch.uint8)
    tiles = torch.cat([pixels, blank]).unflatten(0, (rows, columns))  # rows, columns, C, h, w
    sheet = tiles.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)  # rows * h, columns * w, C
    return Image.fromarray(sheet.expand(-1, -1, 3).contiguous().numpy())


def comparison(
    panels: Sequence[Panel], class_names: Sequence[str], forget: Sequence[int], *, columns: int = 5
) -> Figure:
    """Return a figure with a row a class that was drawn and a block a panel; the forgotten classes come first, in red.

    Args:
        panels: base and corrected in turn, from identical starting noise, for each sampler.
        class_names: the name of each label.
        forget: forgotten labels.
        columns: images of a class in a block; every class that was drawn has at least as many in every panel.
    """
    drawn = set(panels[0].labels.tolist())
    order = [*forget, *(k for k in range(len(class_names)) if k not in forget and k in drawn)]
    sheets = [grid(torch.cat([p.images[p.labels == k][:columns] for k in order]), columns) for p in panels]
    width, height = sheets[0].size
    figure = Figure(
        figsize=(1.1 + len(panels) * (width / 100 + 0.15), height / 100 + 0.5), dpi=100, layout="compressed"
    )
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, panel, sheet in zip(axes, panels, sheets, strict=True):
        axis.imshow(np.asarray(sheet), interpolation="nearest")
        axis.set_title(panel.title, fontsize=9)
        axis.set_xticks([])
        axis.set_yticks([])
    rows = len(order)
    axes[0].set_yticks([(i + 0.5) * height / rows for i in range(rows)], [class_names[k] for k in order])
    for label in axes[0].get_yticklabels()[: len(forget)]:
        label.set(color=FORGOTTEN, fontweight="bold")
    return figure


def compare_samples(
    models: Mapping[str, Samples], class_names: Sequence[str], forget: Sequence[int], evaluation: Evaluation
) -> Figure:
    """Return `comparison` of models by name: all of them under the main sampler, then all under the second."""
    panels = [
        Panel(f"{name}\n{_in_two_lines(sampler.words)}", to_float(images), labels)
        for sampler, second in ((evaluation.main_sampler, False), (evaluation.second_sampler, True))
        for name, s in models.items()
        for images, labels in [(s.second_images, s.second_labels) if second else (s.images, s.labels)]
    ]
    fewest = min(int(p.labels.unique(return_counts=True)[1].min()) for p in panels)
    return comparison(panels, class_names, forget, columns=min(SHOWN_PER_CLASS, fewest))


def _in_two_lines(words: str) -> str:
    name, steps, rest = words.split(", ", 2)
    return f"{name}, {steps},\n{rest}"


def metrics_table(base: Mapping[str, float], corrected: Mapping[str, float]) -> pd.DataFrame:
    """Return a row a metric of the corrected model: base, corrected, difference; nan where the base has none.

    Args:
        base: metrics by key.
        corrected: the same of the corrected model; their order is the rows'.
    """
    values = {"base": [base.get(name, math.nan) for name in corrected], "corrected": list(corrected.values())}
    frame = pd.DataFrame(values, index=pd.Index(list(corrected), name="metric"))
    return frame.assign(difference=frame["corrected"] - frame["base"])


def readable_table(base: Mapping[str, float], corrected: Mapping[str, float], names: Sequence[str]) -> pd.DataFrame:
    """Return a row a metric as people read it: base, corrected, change, unit, and which direction is better.

    Args:
        base: metrics by key; where it lacks one, the cell is "-".
        corrected: the same of the corrected model.
        names: keys of `corrected`; their order is the rows'.
    """
    rows = []
    for name in names:
        info, before, after = meaning(name), base.get(name), corrected[name]
        shown = (quantity(before, info.unit), quantity(after, info.unit), change(after, before, info.unit))
        rows.append((*shown, info.unit, info.better))
    columns = ["base", "corrected", "change", "unit", "better"]
    return pd.DataFrame(rows, index=pd.Index(names, name="metric"), columns=columns)


def as_text(frame: pd.DataFrame, digits: int = 3) -> str:
    """Return a table for a terminal."""
    return frame.to_string(float_format=lambda v: f"{v:.{digits}f}", na_rep="-")


def as_markdown(frame: pd.DataFrame, digits: int = 3) -> str:
    """Return a table for a run's note or a version's description."""
    rows = [[str(frame.index.name or ""), *map(str, frame.columns)], ["---", *["---:"] * len(frame.columns)]]
    rows += [
        [str(name), *(_cell(v, digits) for v in row)] for name, row in zip(frame.index, frame.to_numpy(), strict=True)
    ]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _cell(value: object, digits: int) -> str:
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:.{digits}f}"
    return str(value)
