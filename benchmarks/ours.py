"""Expected targets (ours) beside SAFEMax on digits: at a quarter of its steps, and with each ingredient taken away.

python -m benchmarks.ours                            ten classes, three seeds, 2,000 forget samples
python -m benchmarks.ours --classes=0,7 --seeds=1 --ablated=0
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import pandas as pd

from benchmarks import tables
from benchmarks.corrections import Job, rows
from pipelines.cli.parser import main, parse
from safemax.data.batches import parse_classes
from safemax.data.sources import load
from safemax.knobs import check, knob
from safemax.reports.comparison_tables import interval

METHOD = "expected_targets"
# What is put in an ingredient's place: knobs of the method, settings of the training.
ABLATIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "without the zero target": ({"zero_target": False}, {}),
    "without the teacher's target": ({"teacher_target": False}, {}),
    "without drawing t by psi": ({"draw_by_psi": False}, {}),
    "without null rows": ({"null_share": 0.0}, {}),
    "with SAFEMax's retain weight": ({"retain_weight": 3.072}, {}),
    "without the average": ({}, {"ema": 0.0}),
}


@dataclass(frozen=True)
class Extent:
    """How much of the benchmark to run, and our method's knobs."""

    classes: str = knob("0,1,2,3,4,5,6,7,8,9", "classes to forget, one at a time")
    seeds: int = knob(3, "seeds of training and samples", bounds=(1, 100))
    steps: int = knob(75, "steps of ours", bounds=(1, 100_000))
    beside: int = knob(300, "steps of SAFEMax", bounds=(1, 100_000))
    lr: float = knob(1e-4, "learning rate of ours; SAFEMax has the paper's", bounds=(1e-7, 1))
    retain_weight: float = knob(100.0, "retain weight of ours; SAFEMax has the paper's", bounds=(0, 1e6))
    forget_samples: int = knob(2000, "images of the forgotten class", bounds=(1, 1_000_000))
    ema: float = knob(0.95, "average of ours", bounds=(0, 0.99999))
    ablated: int = knob(
        5, "classes for which each ingredient is taken away in turn, with the first seed", bounds=(0, 10)
    )
    workers: int = knob(2, "processes of one thread each", bounds=(1, 64))

    def __post_init__(self) -> None:
        check(self)


def jobs_of(extent: Extent, classes: Sequence[int]) -> list[Job]:
    """Return the jobs: SAFEMax and ours for each class and seed; with the first seed SAFEMax averaged and ours with less."""
    training = {"steps": extent.steps, "lr": extent.lr, "ema": extent.ema}
    knobs = {"retain_weight": extent.retain_weight}

    def job(variant: str, method: str, forget: int, seed: int, more: dict[str, Any], how: dict[str, Any]) -> Job:
        return Job(variant, method, forget, more, how, seed, extent.forget_samples, with_base=False)

    found = []
    for seed, k in product(range(extent.seeds), classes):
        found.append(job("safemax", "safemax", k, seed, {}, {"steps": extent.beside}))
        found.append(job("ours", METHOD, k, seed, knobs, training))
    for k in classes[: extent.ablated]:
        found.append(job("safemax, averaged", "safemax", k, 0, {}, {"steps": extent.beside, "ema": 0.98}))
    for (name, (more, how)), k in product(ABLATIONS.items(), classes[: extent.ablated]):
        found.append(job(name, METHOD, k, 0, knobs | more, training | how))
    return found


def paired(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a row a variant: means, and the differences to SAFEMax of the same class and seed with 95 % intervals."""
    table = frame.set_index(["variant", "class", "seed"])
    beside = table.loc["safemax"]
    found = []
    for variant in frame["variant"].unique():
        mine = table.loc[variant]
        line = {
            "variant": variant,
            **{c: mine[c].mean() for c in ("steps", "recognised %", "accuracy", "FID", "minutes")},
        }
        line["pairs"] = len(mine)
        for column in ("recognised %", "FID"):
            differences = mine[column] - beside.loc[mine.index, column]
            low, high = interval(differences.tolist())
            line |= {f"{column} difference": differences.mean(), f"{column} low": low, f"{column} high": high}
        found.append(line | {"largest recognised %": mine["recognised %"].max()})
    return pd.DataFrame(found).set_index("variant")


def _beside_ablations(frame: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """Return the rows of ours that the ablations compare with: of the same classes and seed."""
    same = frame[(frame["variant"] == "ours") & (frame["seed"] == 0) & frame["class"].isin(classes)]
    return same.assign(variant="ours, as in the ablations")


def benchmark(argv: Sequence[str]) -> None:
    """Run and write the table."""
    extent = parse("python -m benchmarks.ours", __doc__ or "", {"extent": Extent}, argv)["extent"]
    names = load("digits").class_names
    classes = [c for name in extent.classes.split(",") for c in parse_classes(name, names)]
    jobs = jobs_of(extent, classes)
    frame = pd.DataFrame(rows(jobs, extent.workers))
    frame = pd.concat([frame, _beside_ablations(frame, [names[k] for k in classes[: extent.ablated]])])
    remark = (
        f"{len(classes)} classes, {extent.seeds} seeds; {extent.forget_samples} forget and 900 retained samples each by "
        f"{jobs[0].evaluation.main_sampler}, the same base, seeds and noise for all. Differences are paired by class and seed "
        f"with 95 % intervals; SAFEMax averaged (ema = 0.98) and the ablations are of the first seed and {extent.ablated} "
        f"classes, of which ours is shown apart. {extent.workers} processes of one thread each."
    )
    tables.write("digits-ours", "Expected targets beside SAFEMax on digits", paired(frame), remark, digits=2)


if __name__ == "__main__":
    main(benchmark)
