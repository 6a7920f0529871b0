"""The report of a comparison: the paper's two tables, paired differences and figures, on the run and in the output folder."""

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
from safemax import metric_keys as keys
from safemax.diffusion.model import Diffusion
from safemax.metrics import latents
from safemax.reports import comparison_figures
from safemax.reports.comparison_tables import (
    RETENTION,
    STANDINGS,
    UNLEARNING,
    Column,
    class_table,
    class_table_text,
    paired,
    standings_table,
    standings_text,
    with_paper_values,
)
from safemax.reports.images_and_tables import as_markdown, as_text
from safemax.reports.numbers import counted, duration, percent, quantity
from safemax.storage.file_names import file_name

TABLES = {
    "table1": ("Table 1. Evaluation of unlearning", UNLEARNING),
    "table2": ("Table 2. Evaluation of retention and efficiency", RETENTION),
}
_CHART_METRICS = (
    keys.UA_REJECT,
    keys.RECOGNISED,
    keys.ACCURACY,
    keys.FID_JUDGE,
    keys.RUNTIME_MINUTES,
)
_STANDINGS_AXES = {
    "UA_reject, %": keys.UA_REJECT,
    "FID of retained classes": keys.FID_JUDGE,
    "accuracy on retained classes, %": keys.ACCURACY,
    "minutes of the optimisation": keys.RUNTIME_MINUTES,
}
_FORGOTTEN = 95.0  # percent of UA_reject from which a method counts as one that forgets
_MOST_COLUMNS = 6  # variants side by side, as in the paper; a table of more has one row per variant and value
_NOTE_VALUES = ("UA_reject %", "FID")  # the paired differences that the note shows
_LEGEND = (
    "H: entropy of the plain judge's predictions, in nats. UA: share of the forgotten class's samples that are not classified "
    "as that class, by the plain judge as in the paper, and by the ensemble with a reject class (UA_reject). FID: Frechet "
    "distance to real retained images in the plain judge's features. RTE: minutes of the optimisation; prior: minutes of "
    "preparing the method, in the run that prepared it. memory: peak on the GPU, or of the whole process on a CPU, in 1e9 "
    "bytes. Mean and sample deviation over the classes, of means over the seeds."
)
_PAPER = "(paper): another base, judge, sampler, machine and FID; means and deviations are recomputed."


@dataclass(frozen=True)
class ReportFiles:
    """The folder of files that becomes an artifact of the run, and the pictures of the run's note."""

    run: tracking.Run
    folder: Path

    def text(self, name: str, content: str) -> None:
        """Write a text file."""
        (self.folder / name).write_text(content, encoding="utf-8")

    def picture(self, name: str, figure: Figure) -> str:
        """Write a picture, log it, and return the markdown that shows it."""
        figure.savefig(self.folder / f"{name}.png", bbox_inches="tight")
        return self.run.picture(figure, f"comparison/{name}")


def publish(
    comparison: Comparison,
    run: tracking.Run,
    rows: pd.DataFrame,
    minutes: Mapping[str, float],
    failures: Sequence[str],
) -> None:
    """Make the tables and figures of a comparison and log them to its run, with a note.

    Args:
        comparison: what was compared.
        run: its run.
        rows: see pipelines.comparison.child_runs.rows.
        minutes: of this run, by what they were spent on.
        failures: one line per failed job.
    """
    labels = _labels(comparison, rows)
    with tempfile.TemporaryDirectory() as scratch:
        files = ReportFiles(run, Path(scratch) / "comparison")
        files.folder.mkdir()
        rows.to_csv(files.folder / "children.csv", index=False)
        title, about = _title_and_about(comparison, rows, minutes, failures)
        summary = _standings(files, comparison, labels, rows)
        outcome = _outcome(rows, len(failures))
        print(f"{outcome.replace('**', '')}\n", flush=True)
        tables = [_table(files, comparison, name, labels, rows) for name in TABLES]
        tables += [_differences(files, labels, rows)]
        pictures = _pictures(files, comparison, labels, rows)
        run.note(f"{outcome}\n\n{title}", *summary, about, *pictures, *tables)
        run.log(_means(rows))
        files.text(
            "comparison.md",
            "\n\n".join(
                [outcome, title, *map(_with_local_links, summary), about, *tables, *map(_with_local_links, pictures)]
            )
            + "\n",
        )
        run.artifact(files.folder)
        if comparison.options.output != "none":
            target = Path(comparison.options.output) / f"compare-{file_name(comparison.dataset.name)}"
            shutil.copytree(files.folder, target, dirs_exist_ok=True)


def _outcome(rows: pd.DataFrame, failed: int) -> str:
    """Return which variant won, and how many jobs failed, in a sentence."""
    own = rows[~rows["variant"].isin([BASE, GOLD])]
    lost = f" {counted(failed, 'job')} failed, so the tables have gaps." if failed else ""
    if own.empty:
        return f"**No method has a result.**{lost}"
    means = own.groupby("variant")[[keys.UA_REJECT, keys.FID_JUDGE]].mean()
    forgot = means[means[keys.UA_REJECT] >= _FORGOTTEN]
    best = str((forgot if len(forgot) else means.nlargest(1, keys.UA_REJECT))[keys.FID_JUDGE].idxmin())
    numbers = f"UA_reject {percent(means.loc[best, keys.UA_REJECT])}, FID {quantity(means.loc[best, keys.FID_JUDGE])}"
    if not len(forgot):
        return f"**No method forgets**: none reaches a mean UA_reject of {_FORGOTTEN:g} %; {best} comes nearest: {numbers}.{lost}"
    return (
        f"**{best} keeps the rest best**: {numbers}, the lowest mean FID of the {len(forgot)} of "
        f"{counted(len(means), 'method')} whose mean UA_reject is {_FORGOTTEN:g} % or more.{lost}"
    )


def _means(rows: pd.DataFrame) -> dict[str, float]:
    """Return each variant's means, for the charts of the comparison's run, which would be empty otherwise."""
    means = rows.groupby("variant")[[key for key in _CHART_METRICS if key in rows]].mean()
    return {f"{key}/{label}": float(value) for key, column in means.items() for label, value in column.dropna().items()}


def pairs_of(labels: Sequence[str]) -> list[tuple[str, str]]:
    """Return the pairs to compare: every variant with gold and base, and each two variants."""
    own = [each for each in labels if each not in (BASE, GOLD)]
    references = [each for each in (GOLD, BASE) if each in labels]
    return [*((one, other) for other in references for one in own), *combinations(own, 2)]


def _labels(comparison: Comparison, rows: pd.DataFrame) -> list[str]:
    labels = [BASE, GOLD, *(each.label for each in comparison.variants)]
    return [each for each in labels if each in set(rows["variant"])]


def _standings(files: ReportFiles, comparison: Comparison, labels: Sequence[str], rows: pd.DataFrame) -> list[str]:
    """Return the summary of the tables by class, one row per variant, as a table and as a picture."""
    columns = [each for each in STANDINGS if each.metric in rows]
    frame = standings_table(class_table(rows, columns, labels, comparison.class_names))
    frame.set_axis([" ".join(each) for each in frame.columns], axis=1).to_csv(files.folder / "standings.csv")
    shown = standings_text(frame, columns)
    files.run.table(shown.reset_index(), "standings")
    print(f"\n{as_text(shown)}\n", flush=True)
    axes = {label: key for label, key in _STANDINGS_AXES.items() if key in rows}
    picture = files.picture("standings", comparison_figures.standings_figure(rows, axes, labels))
    return [f"**One row per variant**, mean ± sd over the forgotten classes\n\n{as_markdown(shown)}", picture]


def _table(files: ReportFiles, comparison: Comparison, name: str, labels: Sequence[str], rows: pd.DataFrame) -> str:
    title, all_columns = TABLES[name]
    columns = [each for each in all_columns if each.metric in rows]
    frame = class_table(rows, columns, labels, comparison.class_names)
    is_paper = comparison.dataset.name == "cifar10"
    if is_paper:
        frame = with_paper_values(frame, comparison.dataset.class_names)
    shown = class_table_text(frame, columns)
    if len(labels) > _MOST_COLUMNS:
        shown = shown.T.rename_axis("value")
    remark = _PAPER if is_paper else ""
    frame.set_axis([f"{one} {value}" for one, value in frame.columns], axis=1).to_csv(files.folder / f"{name}.csv")
    files.text(f"{name}.md", f"{title}\n\n{as_markdown(shown)}\n\n{remark}\n")
    files.run.table(shown.reset_index(), name)
    files.picture(name, comparison_figures.table_figure(shown, title, remark))
    print(f"\n{title}\n\n{as_text(shown)}\n", flush=True)
    return f"**{title}**\n\n{as_markdown(shown)}\n\n{remark}".rstrip()


def _differences(files: ReportFiles, labels: Sequence[str], rows: pd.DataFrame) -> str:
    columns: list[Column] = [each for each in (*UNLEARNING, *RETENTION) if each.metric in rows]
    frame = paired(rows, columns, pairs_of(labels))
    frame.to_csv(files.folder / "paired.csv", index=False)
    files.text("paired.md", as_markdown(frame.set_index("value")) + "\n")
    files.run.table(frame, "paired")
    first = next((each for each in labels if each not in (BASE, GOLD)), "")
    shown = (frame["variant"] == first) | frame["against"].isin([BASE, GOLD])
    brief = frame[shown & frame["value"].isin(_NOTE_VALUES)].set_index("value")
    return (
        "**Paired differences**: mean over the classes (over the seeds where there is one class), with Student's 95 % interval; "
        f"the other values and pairs are in paired.csv.\n\n{as_markdown(brief)}"
    )


def _pictures(files: ReportFiles, comparison: Comparison, labels: Sequence[str], rows: pd.DataFrame) -> list[str]:
    alpha_bar = Diffusion.load(comparison.base).alpha_bar
    figure = comparison_figures.latents_figure(*latents.of_data(comparison.dataset.train, alpha_bar))
    parts = [f"**Figure 1**, latent states\n\n{files.picture('figure1', figure)}"]
    strips = image_strips.read(rows, labels)
    layout = image_strips.StripLayout.of(comparison.evaluation, comparison.dataset.num_classes)
    overview = image_strips.overview(strips, comparison, layout)
    parts += [f"**Figure 2**, what each model draws for a forgotten class\n\n{files.picture('figure2', overview)}"]
    for k in comparison.classes:
        grid = image_strips.of_class(strips, comparison, layout, k)
        if grid is not None:
            files.picture(f"forgotten-{file_name(comparison.dataset.class_names[k], letters_only=True)}", grid)
    points = _points(comparison, rows)
    if len(points):
        points.to_csv(files.folder / "figure3.csv", index=False)
        figure = comparison_figures.ablation_figure(points, comparison.class_names[0])
        parts += [f"**Figure 3**, lambda of SAFEMax\n\n{files.picture('figure3', figure)}"]
    return parts


def _points(comparison: Comparison, rows: pd.DataFrame) -> pd.DataFrame:
    first = rows[rows["forget"] == comparison.class_names[0]]
    points = [
        {"weighting": weighting, "lambda": value, "seed": row["seed"], "ua": row[keys.UA_REJECT],
         "ua_paper": row[keys.UA], "fid": row[keys.FID_JUDGE]}
        for weighting, value, variant in comparison.ablation
        for _, row in first[first["variant"] == variant.label].iterrows()
    ]  # fmt: skip
    return pd.DataFrame(points)


def _title_and_about(
    comparison: Comparison, rows: pd.DataFrame, minutes: Mapping[str, float], failures: Sequence[str]
) -> tuple[str, str]:
    """Return the title of the page, and the paragraph on how its numbers came about."""
    options = comparison.options
    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} cores"
    spending = (
        ", ".join(f"{name} {duration(value)}" for name, value in minutes.items())
        or "none, since all children had finished before"
    )
    title = (
        f"{comparison.title}: {counted(len(comparison.classes), 'class')}, {counted(options.seeds, 'seed')}, {date.today()}, "
        f"{machine}, {counted(options.workers, 'worker')}; protocol {comparison.evaluation.protocol} "
        f"({comparison.evaluation.main_sampler.words})."
    )
    lines = [
        f"`{shlex.join(['python', *sys.orig_argv[1:]])}`",
        f"Time of this run: {spending}.",
        _LEGEND,
    ]
    commits = sorted({each for each in rows["commit"] if each})
    if len(commits) > 1:
        lines.append(f"The children were made by {len(commits)} commits: {', '.join(each[:10] for each in commits)}.")
    if failures:
        title += f" Failed: {'; '.join(failures)}"
    return title, "\n\n".join(lines)


def _with_local_links(picture: str) -> str:
    """Return a part of the note with links to the pictures in the same folder, instead of links into the run."""
    return re.sub(r"\(\S*?([\w-]+\.png)\)", r"(\1)", picture)
