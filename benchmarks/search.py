"""The search measured: what it costs beside its trials, what a second worker brings, and what it finds on digits.

    python -m benchmarks.search --part=overhead            one worker, twelve trials
    python -m benchmarks.search --part=workers             the same twelve trials by one worker and by two
    python -m benchmarks.search --part=hypervolume         TPE and random search, 20 trials, three seeds
    python -m benchmarks.search --part=digits              40 trials for each of three classes, front beside defaults

Each needs an idle machine of two cores; runs go to a store of their own in a temporary folder.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mlflow
import optuna
import pandas as pd
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial

from benchmarks import tables
from benchmarks.digits import base_of
from hpo import figures
from hpo.request import Request
from hpo.search import requested, run
from hpo.study import dominates
from pipelines import registry, tracking
from pipelines.command import main, parse
from pipelines.process import Flag
from safemax import cache
from safemax.data import load
from safemax.knobs import check, knob

SPACE = "lr=1e-5:1e-3:log,lambda=0:5"


@dataclass(frozen=True)
class Extent:
    """How much of the benchmark to run."""

    part: str = knob("overhead", "what to measure", choices=("overhead", "workers", "hypervolume", "digits"))
    classes: str = knob("3,6,8", "classes to forget, one search each; all parts but digits take the first")
    trials: int = knob(0, "trials of a search; 0 takes 12, 12, 20 and 40", bounds=(0, 1000))
    steps: int = knob(150, "steps of a trial", bounds=(1, 100_000))
    seeds: int = knob(3, "seeds of each sampler in hypervolume", bounds=(1, 100))
    model: str = knob("demo", "folder of the base; demo trains the demonstration's, once")

    def __post_init__(self) -> None:
        check(self)

    @property
    def count(self) -> int:
        """Trials of a search."""
        return self.trials or {"overhead": 12, "workers": 12, "hypervolume": 20, "digits": 40}[self.part]


@dataclass(frozen=True)
class Measured:
    """A search that has ended."""

    request: Request
    trials: list[FrozenTrial]
    address: str
    minutes: float

    @property
    def trial_minutes(self) -> float:
        """From the first trial's start to the end of the last one's run."""
        client = tracking.store()
        ends = [client.get_run(each.user_attrs["runs"][-1]).info.end_time for each in self.trials]
        starts = [each.datetime_start.timestamp() for each in self.trials if each.datetime_start]
        return (max(ends) / 1000 - min(starts)) / 60

    @property
    def own_minutes(self) -> float:
        """What the trials' own work took: preparing, unlearning, sampling, measuring."""
        kinds = ("setup", "runtime", "evaluation")
        return sum(each.user_attrs["metrics"][f"cost/{kind}_minutes"] for each in self.trials for kind in kinds)


def searched(extent: Extent, forget: str, *more: str) -> Measured:
    """Run a search of digits, over lambda and lr at equal steps, anew."""
    given = [f"--forget={forget}", f"--model={base(extent)}", f"--trials={extent.count}", f"--steps={extent.steps}"]
    given += [f"--space={SPACE}", "--retain_weight=3.072", f"--study=benchmark-{time.time_ns()}", *more]
    request = requested(given)
    started = time.perf_counter()
    address = run(request, Flag())
    minutes = (time.perf_counter() - started) / 60
    study = optuna.load_study(
        study_name=request.study, storage=JournalStorage(JournalFileBackend(str(request.journal)))
    )
    return Measured(request, study.get_trials(deepcopy=False), address, minutes)


def base(extent: Extent) -> Path:
    """Return the folder of the base."""
    if extent.model != "demo":
        return Path(extent.model).absolute()
    folder = cache.folder("bases").absolute() / "search"
    if not folder.exists():
        base_of(load("digits")).save(folder)
    return folder


def overhead(extent: Extent) -> None:
    """What search, tracking and storage add to the trials' own work."""
    found = searched(extent, extent.classes.split(",")[0], "--prune=false")
    share = 100 * (found.trial_minutes / found.own_minutes - 1)
    row = {
        "trials": len(found.trials),
        "s a trial, own work": 60 * found.own_minutes / len(found.trials),
        "s a trial, in all": 60 * found.trial_minutes / len(found.trials),
        "overhead %": share,
    }
    tables.write("search-overhead", "Overhead of a search", pd.DataFrame([row]).set_index("trials"), REMARK, digits=2)


REMARK = (
    "Own work: preparing, unlearning, sampling and measuring, as each trial's cost metrics say. In all: from the start of the "
    "first trial to the end of the last one's run, so with proposals, journal, MLflow runs and pictures, checkpoints and weights."
)


def two_workers(extent: Extent) -> None:
    """What a second worker brings."""
    found = {n: searched(extent, extent.classes.split(",")[0], "--prune=false", f"--workers={n}") for n in (1, 2)}
    rows = [
        {"workers": n, "minutes of trials": each.trial_minutes, "minutes in all": each.minutes}
        for n, each in found.items()
    ]
    frame = pd.DataFrame(rows).set_index("workers")
    ratio = found[2].trial_minutes / found[1].trial_minutes
    remark = f"Two workers take {ratio:.2f} of one worker's time for the trials, {found[2].minutes / found[1].minutes:.2f} in all."
    tables.write("search-workers", "One worker and two", frame, remark)


def volumes(extent: Extent) -> None:
    """How much better TPE is than random search."""
    rows = []
    for seed in range(extent.seeds):
        for sampler in ("tpe", "random"):
            more = (
                f"--search_sampler={sampler}",
                f"--search_seed={seed}",
                "--prune=false",
                "--workers=2",
                "--final_samples=1",
            )
            found = searched(extent, extent.classes.split(",")[0], *more)
            rows.append({"seed": seed, "sampler": sampler, "hypervolume": volume(found)})
    frame = pd.DataFrame(rows).pivot_table(index="seed", columns="sampler", values="hypervolume")
    frame.loc["mean"] = frame.mean()
    remark = "Reference point: probability 1 of the forgotten class, FID of the retained ones twice the base's; 1 is the whole."
    tables.write("search-hypervolume", f"Hypervolume after {extent.count} trials", frame, remark)


def volume(found: Measured) -> float:
    """Return the hypervolume of a search's trials."""
    parent = tracking.store().get_run(str(registry.version_of(found.address).run_id))
    reference = 1.0, parent.data.metrics["search/base_quality"]
    return figures.volumes(found.trials, reference)[-1]


def digits(extent: Extent) -> None:
    """Whether each front holds a point that dominates the paper's defaults, measured on fresh seeds."""
    rows = []
    for forget in extent.classes.split(","):
        found = searched(extent, forget, "--workers=2")
        rows += [{"class": forget, "minutes": found.minutes, **each} for each in beside_defaults(found)]
    frame = pd.DataFrame(rows).set_index("class")
    frame = frame.map(lambda value: f"{value:.4g}" if isinstance(value, float) else value)
    remark = (
        f"Defaults: lambda = 1, lr = 1e-4. Each search: {extent.count} trials of {extent.steps} steps by two workers; minutes "
        "in all, the front's measuring and the registration included. forgetting: probability under the reject judges; "
        "quality: FID of the retained classes minus the base's; both on fresh seeds with four times a trial's samples."
    )
    tables.write("search-digits", "The front beside the paper's defaults", frame, remark)


def beside_defaults(found: Measured) -> list[dict[str, object]]:
    """Return the defaults and the member of the front that dominates them at the best quality, if one does."""
    scores = {int(n): each for n, each in registry.evidence(found.address)["search"]["scores"].items()}
    first = (scores[0]["forgetting"], scores[0]["quality"])
    better = {n: s for n, s in scores.items() if dominates((s["forgetting"], s["quality"]), first)}
    rows: list[dict[str, object]] = [{"which": "defaults", **_shown(found, 0, scores[0])}]
    if better:
        best = min(better, key=lambda n: better[n]["quality"])
        rows.append({"which": f"trial {best}, 1 of {len(better)} that dominate", **_shown(found, best, scores[best])})
    else:
        rows.append({"which": "no member dominates"})
    return rows


def _shown(found: Measured, number: int, scores: dict[str, float]) -> dict[str, object]:
    knobs = {name: found.trials[number].params[name] for name in ("lambda", "lr")}
    return {**knobs, **{name: scores[name] for name in ("forgetting", "quality", "accuracy_drop")}}


def benchmark(argv: Sequence[str]) -> None:
    """Measure one part and write its table."""
    extent = parse("python -m benchmarks.search", __doc__ or "", {"extent": Extent}, argv)["extent"]
    os.environ["SAFEMAX_CACHE"] = str(cache.folder("").absolute())
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        mlflow.set_tracking_uri(f"sqlite:///{scratch}/mlflow.db")
        {"overhead": overhead, "workers": two_workers, "hypervolume": volumes, "digits": digits}[extent.part](extent)


if __name__ == "__main__":
    main(benchmark)
