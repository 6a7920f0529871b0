"""What a comparison shows: the paper's two tables, paired differences, its figures; on the run, and in a folder if asked for."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import combinations
from pathlib import Path

import pandas as pd
import torch
from matplotlib.figure import Figure

from pipelines import tracking
from pipelines.comparison import image_strips
from pipelines.comparison.plan import BASE, GOLD, Comparison
from safemax.diffusion.model import Diffusion
from safemax.metrics import latents
from safemax.reports import comparison_figures
from safemax.reports.comparison_tables import (
    RETENTION,
    STANDING,
    UNLEARNING,
    Column,
    beside_paper,
    paired,
    standings,
    standings_written,
    table,
    written,
)
from safemax.reports.images_and_tables import as_markdown, as_text

TABLES = {
    "table1": ("Table 1. Evaluation of unlearning", UNLEARNING),
    "table2": ("Table 2. Evaluation of retention and efficiency", RETENTION),
}
_CHARTED = ("forget/ua_reject", "forget/recognised", "retain/accuracy", "retain/fid_judge", "cost/runtime_minutes")
_DRAWN = {
    "UA_reject, %": "forget/ua_reject",
    "FID of retained classes": "retain/fid_judge",
    "accuracy on retained classes, %": "retain/accuracy",
    "minutes of the optimisation": "cost/runtime_minutes",
}
_BESIDE = 6  # variants that stand beside each other, as in the paper; more of them stand under each other
_DECISIVE = ("UA_reject %", "FID")  # what the note shows of the paired differences
_MEANING = (
    "H: entropy of the plain judge's answers, nats. UA: share of samples of the forgotten class that a judge does not take for "
    "it, by the plain judge as in the paper, and by the ensemble that may answer none of these (UA_reject). FID: Frechet "
    "distance to real retained images in the plain judge's features. RTE: minutes of the optimisation; prior: minutes "
    "before it, of the run that made it. memory: peak on the GPU, on a CPU of the whole process, in 1e9 bytes. "
    "Mean and sample deviation over the classes, of means over the seeds."
)
_PAPER = "(paper): another base, network judge, sampler, machine and FID; recomputed means and deviations."


@dataclass(frozen=True)
class ReportFiles:
    """Files that go to the run, and pictures that its note shows."""

    run: tracking.Run
    folder: Path

    def text(self, name: str, content: str) -> None:
        """Write a text file."""
        (self.folder / name).write_text(content, encoding="utf-8")

    def picture(self, name: str, figure: Figure) -> str:
        """Write a picture, log it, and return the markdown that shows it."""
        figure.savefig(self.folder / f"{name}.png", bbox_inches="tight")
        return self.run.picture(figure, f"comparison/{name}")


def show(
    comparison: Comparison,
    run: tracking.Run,
    rows: pd.DataFrame,
    minutes: Mapping[str, float],
    failures: Sequence[str],
) -> None:
    """Make the tables and figures of the rows (see pipelines.comparison.child_runs.rows) and log them to the run, with a note."""
    labels = _labels(comparison, rows)
    with tempfile.TemporaryDirectory() as scratch:
        exhibits = ReportFiles(run, Path(scratch) / "comparison")
        exhibits.folder.mkdir()
        rows.to_csv(exhibits.folder / "children.csv", index=False)
        title, about = _about(comparison, rows, minutes, failures)
        first = _standings(exhibits, comparison, labels, rows)
        tables = [_table(exhibits, comparison, name, labels, rows) for name in TABLES]
        tables += [_differences(exhibits, labels, rows)]
        pictures = _pictures(exhibits, comparison, labels, rows)
        run.note(title, *first, about, *pictures, *tables)
        run.log(_means(rows))
        exhibits.text(
            "comparison.md",
            "\n\n".join([title, *map(_beside_it, first), about, *tables, *map(_beside_it, pictures)]) + "\n",
        )
        run.artifact(exhibits.folder)
        if comparison.asked.output != "none":
            target = Path(comparison.asked.output) / f"compare-{comparison.dataset.name}"
            shutil.copytree(exhibits.folder, target, dirs_exist_ok=True)


def _means(rows: pd.DataFrame) -> dict[str, float]:
    """Return each variant's means, for the parent run's charts, which MLflow leaves empty otherwise."""
    means = rows.groupby("variant")[[key for key in _CHARTED if key in rows]].mean()
    return {f"{key}/{label}": float(value) for key, column in means.items() for label, value in column.dropna().items()}


def pairs_of(labels: Sequence[str]) -> list[tuple[str, str]]:
    """Return who is held against whom: every variant against gold and base, and each two variants."""
    own = [each for each in labels if each not in (BASE, GOLD)]
    beside = [each for each in (GOLD, BASE) if each in labels]
    return [*((one, other) for other in beside for one in own), *combinations(own, 2)]


def _labels(comparison: Comparison, rows: pd.DataFrame) -> list[str]:
    asked = [BASE, GOLD, *(each.label for each in comparison.variants)]
    return [each for each in asked if each in set(rows["variant"])]


def _standings(exhibits: ReportFiles, comparison: Comparison, labels: Sequence[str], rows: pd.DataFrame) -> list[str]:
    """Return the table and the picture with a row a variant: what the tables by class come to."""
    columns = [each for each in STANDING if each.metric in rows]
    frame = standings(table(rows, columns, labels, comparison.class_names))
    frame.set_axis([" ".join(each) for each in frame.columns], axis=1).to_csv(exhibits.folder / "standings.csv")
    shown = standings_written(frame, columns)
    exhibits.run.table(shown.reset_index(), "standings")
    print(f"\n{as_text(shown)}\n", flush=True)
    drawn = {label: key for label, key in _DRAWN.items() if key in rows}
    picture = exhibits.picture("standings", comparison_figures.standings(rows, drawn, labels))
    return [f"**A row a variant**, mean ± sd over the forgotten classes\n\n{as_markdown(shown)}", picture]


def _table(exhibits: ReportFiles, comparison: Comparison, name: str, labels: Sequence[str], rows: pd.DataFrame) -> str:
    title, wanted = TABLES[name]
    columns = [each for each in wanted if each.metric in rows]
    frame = table(rows, columns, labels, comparison.class_names)
    is_paper = comparison.dataset.name == "cifar10"
    if is_paper:
        frame = beside_paper(frame, comparison.dataset.class_names)
    shown = written(frame, columns)
    if len(labels) > _BESIDE:
        shown = shown.T.rename_axis("value")
    remark = _PAPER if is_paper else ""
    frame.set_axis([f"{one} {value}" for one, value in frame.columns], axis=1).to_csv(exhibits.folder / f"{name}.csv")
    exhibits.text(f"{name}.md", f"{title}\n\n{as_markdown(shown)}\n\n{remark}\n")
    exhibits.run.table(shown.reset_index(), name)
    exhibits.picture(name, comparison_figures.sheet(shown, title, remark))
    print(f"\n{title}\n\n{as_text(shown)}\n", flush=True)
    return f"**{title}**\n\n{as_markdown(shown)}\n\n{remark}".rstrip()


def _differences(exhibits: ReportFiles, labels: Sequence[str], rows: pd.DataFrame) -> str:
    columns: list[Column] = [each for each in (*UNLEARNING, *RETENTION) if each.metric in rows]
    frame = paired(rows, columns, pairs_of(labels))
    frame.to_csv(exhibits.folder / "paired.csv", index=False)
    exhibits.text("paired.md", as_markdown(frame.set_index("value")) + "\n")
    exhibits.run.table(frame, "paired")
    first = next((each for each in labels if each not in (BASE, GOLD)), "")
    shown = (frame["variant"] == first) | frame["against"].isin([BASE, GOLD])
    decisive = frame[shown & frame["value"].isin(_DECISIVE)].set_index("value")
    return (
        "**Paired differences**: mean over the classes (of one class, over its seeds), with Student's 95 % interval; the other "
        f"values and pairs are in paired.csv.\n\n{as_markdown(decisive)}"
    )


def _pictures(exhibits: ReportFiles, comparison: Comparison, labels: Sequence[str], rows: pd.DataFrame) -> list[str]:
    alpha_bar = Diffusion.load(comparison.base).alpha_bar
    figure = comparison_figures.latents(*latents.of_data(comparison.dataset.train, alpha_bar))
    parts = [f"**Figure 1**, latent states\n\n{exhibits.picture('figure1', figure)}"]
    kept = image_strips.read(rows, labels)
    blocks = image_strips.StripLayout.of(comparison.evaluation, comparison.dataset.num_classes)
    overview = image_strips.overview(kept, comparison, blocks)
    parts += [f"**Figure 2**, what each model draws for a forgotten class\n\n{exhibits.picture('figure2', overview)}"]
    for k in comparison.classes:
        grid = image_strips.of_class(kept, comparison, blocks, k)
        if grid is not None:
            exhibits.picture(f"forgotten-{_plain(comparison.dataset.class_names[k])}", grid)
    points = _points(comparison, rows)
    if len(points):
        points.to_csv(exhibits.folder / "figure3.csv", index=False)
        figure = comparison_figures.ablation(points, comparison.class_names[0])
        parts += [f"**Figure 3**, lambda of SAFEMax\n\n{exhibits.picture('figure3', figure)}"]
    return parts


def _points(comparison: Comparison, rows: pd.DataFrame) -> pd.DataFrame:
    first = rows[rows["forget"] == comparison.class_names[0]]
    points = [
        {"weighting": weighting, "lambda": value, "seed": row["seed"], "ua": row["forget/ua_reject"],
         "ua_paper": row["forget/ua"], "fid": row["retain/fid_judge"]}
        for weighting, value, variant in comparison.ablation
        for _, row in first[first["variant"] == variant.label].iterrows()
    ]  # fmt: skip
    return pd.DataFrame(points)


def _about(
    comparison: Comparison, rows: pd.DataFrame, minutes: Mapping[str, float], failures: Sequence[str]
) -> tuple[str, str]:
    """Return the title of the page and what there is to know about its numbers."""
    asked = comparison.asked
    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} cores"
    spent = ", ".join(f"{name} {value:.1f}" for name, value in minutes.items()) or "none: all had finished before"
    title = (
        f"**{comparison.title}**, {len(comparison.classes)} classes, {asked.seeds} seeds, {date.today()}, {machine}, "
        f"workers = {asked.workers}; protocol {comparison.evaluation.protocol}, {comparison.evaluation.main_sampler}."
    )
    lines = [
        f"`{shlex.join(['python', *sys.orig_argv[1:]])}`",
        f"Minutes of this run: {spent}.",
        _MEANING,
    ]
    commits = sorted({each for each in rows["commit"] if each})
    if len(commits) > 1:
        lines.append(f"Its children were made by {len(commits)} commits: {', '.join(each[:10] for each in commits)}.")
    if failures:
        title += f" Failed: {'; '.join(failures)}"
    return title, "\n\n".join(lines)


def _beside_it(picture: str) -> str:
    """Return a part of the note for the file that has the pictures beside it, where the note has links into the run."""
    return re.sub(r"\(\S*?([\w-]+\.png)\)", r"(\1)", picture)


def _plain(name: str) -> str:
    """Return a class's name as MLflow takes it in an artifact's path."""
    return "".join(letter if letter.isalnum() else "-" for letter in name)
