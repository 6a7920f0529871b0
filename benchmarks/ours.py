"""Expected targets (ours) compared with SAFEMax on digits: at a quarter of its steps, and with each ingredient removed.

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
from benchmarks.corrections import MeasuredCorrection, rows
from pipelines.cli.parser import main, parse
from safemax.data.class_names import parse_classes
from safemax.data.sources import load
from safemax.knobs import check, knob
from safemax.reports.comparison_tables import interval

METHOD = "expected_targets"
# What replaces an ingredient: knobs of the method, settings of the training.
ABLATIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "without the zero target": ({"zero_target": False}, {}),
    "without the teacher's target": ({"teacher_target": False}, {}),
    "without drawing t by psi": ({"draw_by_psi": False}, {}),
    "without null rows": ({"null_share": 0.0}, {}),
    "with SAFEMax's retain weight": ({"retain_weight": 3.072}, {}),
    "without the average": ({}, {"ema": 0.0}),
}


@dataclass(frozen=True)
class BenchmarkOptions:
    """How much of the benchmark to run, and our method's knobs."""

    classes: str = knob("0,1,2,3,4,5,6,7,8,9", "classes to forget, one at a time")
    seeds: int = knob(3, "seeds of training and samples", bounds=(1, 100))
    steps: int = knob(75, "steps of ours", bounds=(1, 100_000))
    safemax_steps: int = knob(300, "steps of SAFEMax", bounds=(1, 100_000))
    lr: float = knob(1e-4, "learning rate of ours; SAFEMax has the paper's", bounds=(1e-7, 1))
    retain_weight: float = knob(100.0, "retain weight of ours; SAFEMax has the paper's", bounds=(0, 1e6))
    forget_samples: int = knob(2000, "images of the forgotten class", bounds=(1, 1_000_000))
    ema: float = knob(0.95, "average of ours", bounds=(0, 0.99999))
    ablated: int = knob(5, "classes for which each ingredient is removed in turn, with the first seed", bounds=(0, 10))
    workers: int = knob(2, "processes of one thread each", bounds=(1, 64))

    def __post_init__(self) -> None:
        check(self)


def corrections_of(options: BenchmarkOptions, classes: Sequence[int]) -> list[MeasuredCorrection]:
    """Return SAFEMax and ours for each class and seed; for the first seed SAFEMax averaged and the ablations of ours too."""
    training = {"steps": options.steps, "lr": options.lr, "ema": options.ema}
    knobs = {"retain_weight": options.retain_weight}

    def correction(
        variant: str, method: str, forget: int, seed: int, knobs: dict[str, Any], training: dict[str, Any]
    ) -> MeasuredCorrection:
        return MeasuredCorrection(
            variant, method, forget, knobs, training, seed, options.forget_samples, with_base=False
        )

    corrections = []
    for seed, k in product(range(options.seeds), classes):
        corrections.append(correction("safemax", "safemax", k, seed, {}, {"steps": options.safemax_steps}))
        corrections.append(correction("ours", METHOD, k, seed, knobs, training))
    for k in classes[: options.ablated]:
        corrections.append(
            correction("safemax, averaged", "safemax", k, 0, {}, {"steps": options.safemax_steps, "ema": 0.98})
        )
    for (name, (other_knobs, other_training)), k in product(ABLATIONS.items(), classes[: options.ablated]):
        corrections.append(correction(name, METHOD, k, 0, knobs | other_knobs, training | other_training))
    return corrections


def paired(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one row per variant: means, and differences to SAFEMax of the same class and seed with 95 % intervals."""
    table = frame.set_index(["variant", "class", "seed"])
    safemax = table.loc["safemax"]
    rows = []
    for variant in frame["variant"].unique():
        runs = table.loc[variant]
        line = {
            "variant": variant,
            **{c: runs[c].mean() for c in ("steps", "recognised %", "accuracy", "FID", "minutes")},
        }
        line["pairs"] = len(runs)
        for column in ("recognised %", "FID"):
            differences = runs[column] - safemax.loc[runs.index, column]
            low, high = interval(differences.tolist())
            line |= {f"{column} difference": differences.mean(), f"{column} low": low, f"{column} high": high}
        rows.append(line | {"largest recognised %": runs["recognised %"].max()})
    return pd.DataFrame(rows).set_index("variant")


def _reference_of_ablations(frame: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """Return the rows of ours that the ablations are compared with, of the same classes and seed."""
    same = frame[(frame["variant"] == "ours") & (frame["seed"] == 0) & frame["class"].isin(classes)]
    return same.assign(variant="ours, as in the ablations")


def benchmark(argv: Sequence[str]) -> None:
    """Run and write the table."""
    options = parse("python -m benchmarks.ours", __doc__ or "", {"options": BenchmarkOptions}, argv)["options"]
    names = load("digits").class_names
    classes = [c for name in options.classes.split(",") for c in parse_classes(name, names)]
    corrections = corrections_of(options, classes)
    frame = pd.DataFrame(rows(corrections, options.workers))
    frame = pd.concat([frame, _reference_of_ablations(frame, [names[k] for k in classes[: options.ablated]])])
    remark = (
        f"{len(classes)} classes, {options.seeds} seeds; {options.forget_samples} forget and 900 retained samples each by "
        f"{corrections[0].evaluation.main_sampler}, the same base, seeds and noise for all. Differences are paired by class and "
        f"seed with 95 % intervals; SAFEMax averaged (ema = 0.98) and the ablations are of the first seed and {options.ablated} "
        f"classes, for which ours has a row of its own. {options.workers} processes of one thread each."
    )
    tables.write("digits-ours", "Expected targets compared with SAFEMax on digits", paired(frame), remark, digits=2)


if __name__ == "__main__":
    main(benchmark)
