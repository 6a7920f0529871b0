"""The gain of a comparison from a second worker: the same children by one, then by two.

    OMP_NUM_THREADS=1 python -m benchmarks.comparison

Run it on an idle machine with two cores. The base and the judges are made before, once; the base's samples are drawn by each and
not counted; what is counted are the start of the workers and the children. Each count of workers has an MLflow store and a cache
of its own, so that none finds the other's children or their samples. Fewer or shorter children look worse: the start is a
constant.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pandas as pd

from benchmarks import tables
from benchmarks.search import base_folder
from pipelines import compare, tracking
from pipelines.cli.parser import main, parse
from safemax.data.sources import load
from safemax.judges.config import JudgeConfig
from safemax.judges.load import judges
from safemax.judges.reference import reference
from safemax.knobs import check, knob
from safemax.storage import cache


@dataclass(frozen=True)
class BenchmarkOptions:
    """How much to compare."""

    methods: str = knob("safemax,finetune", "methods")
    classes: str = knob("0,1,3,6,8,9", "classes to forget; methods times classes is the number of children")
    steps: int = knob(150, "steps of a child", bounds=(1, 100_000))
    samples: int = knob(
        50,
        "images of each retained class that measure a child; twice as many of the forgotten one",
        bounds=(10, 10_000),
    )
    model: str = knob("demo", "folder of the base; demo trains the demonstration's, once")

    def __post_init__(self) -> None:
        check(self)

    @property
    def children(self) -> int:
        """Children of a comparison."""
        return len(self.methods.split(",")) * len(self.classes.split(","))


def minutes(options: BenchmarkOptions, model: Path, workers: int, common: Path) -> dict[str, float]:
    """Compare with so many workers in a store of its own, and return the minutes of the start and of the children.

    Args:
        options: how much to compare.
        model: folder of the base.
        workers: their number.
        common: the cache that has base and judges; the store comes below it, and has a copy without results.
    """
    store = common / "benchmarks" / "comparison" / f"{workers}-{time.time_ns()}"
    no_results = shutil.ignore_patterns("benchmarks", "samples", "checkpoints", "studies")
    shutil.copytree(common, store / "cache", ignore=no_results)
    os.environ["SAFEMAX_CACHE"] = str(store / "cache")
    os.chdir(store)
    mlflow.set_tracking_uri(f"sqlite:///{store}/mlflow.db")
    compare.compare(
        [
            f"--methods={options.methods}", f"--classes={options.classes}", f"--steps={options.steps}",
            f"--model={model}", "--data=digits", "--gold=false", "--device=cpu", f"--workers={workers}",
            f"--retain_samples={options.samples}", f"--forget_samples={2 * options.samples}",
        ]
    )  # fmt: skip
    experiment = tracking.store().get_experiment_by_name("digits-ddpm")
    assert experiment
    (run,) = tracking.store().search_runs([experiment.experiment_id], "tags.kind = 'comparison'")
    found = run.data.metrics
    return {"start": found["comparison/judges_minutes"], "children": found["comparison/children_minutes"]}


def benchmark(argv: Sequence[str]) -> None:
    """Measure and write the table."""
    options = parse("python -m benchmarks.comparison", __doc__ or "", {"options": BenchmarkOptions}, argv)["options"]
    common, dataset = cache.root().absolute(), load("digits")
    reference(dataset, judges(dataset, JudgeConfig()))
    model = base_folder(options.model).absolute()
    found = {n: minutes(options, model, n, common) for n in (1, 2)}
    rows = [
        {"workers": n, "minutes of children": each["children"], "with the start": sum(each.values())}
        for n, each in found.items()
    ]
    frame = pd.DataFrame(rows).set_index("workers")
    children, whole = (frame.loc[2, name] / frame.loc[1, name] for name in frame.columns)
    remark = (
        f"{options.children} children. Two workers take {children:.2f} of one worker's time for the children and {whole:.2f} "
        "with the start of the workers and what they load. The bar is 0.6."
    )
    tables.write("comparison-workers", "A comparison by one worker and by two", frame, remark)


if __name__ == "__main__":
    main(benchmark)
