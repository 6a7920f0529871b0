"""The search measured: what it finds on digits, its overhead over its trials, and the gain from a second worker.

    python -m benchmarks.search --part=digits              40 trials for each of three classes, front and defaults
    python -m benchmarks.search --part=hypervolume         TPE and random search, 20 trials, three seeds
    python -m benchmarks.search --part=overhead            twelve trials by one worker
    python -m benchmarks.search --part=workers             ten trials by one worker, then by two
    python -m benchmarks.search --part=engine              forty trials that do nothing: what workers cost a study

Run them on an idle machine with two cores. The same command resumes a benchmark that was stopped: finished searches are cached
with their runs in benchmarks/ of the cache; an unfinished one resumes, or starts afresh where its time is measured.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import mlflow
import optuna
import pandas as pd
from mlflow import MlflowClient
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from benchmarks import empty_jobs, tables
from benchmarks.corrections import base_of, source
from hpo import figures
from hpo.config import SearchConfig
from hpo.search import read_config, run
from hpo.study import dominates
from pipelines import tracking
from pipelines.cli.parser import main, parse
from pipelines.engine.signals import StopSignal, stop_on_signals
from pipelines.registry import model_versions
from safemax.data.sources import load
from safemax.errors import InputError
from safemax.judges.config import JudgeConfig
from safemax.judges.load import judges
from safemax.judges.reference import reference
from safemax.knobs import check, knob
from safemax.storage import atomic, cache

SPACE = "lr=1e-5:1e-3:log,lambda=0:5"
TRIALS = {"digits": 40, "hypervolume": 20, "overhead": 12, "workers": 10, "engine": 40}


@dataclass(frozen=True)
class BenchmarkOptions:
    """How much of the benchmark to run."""

    part: str = knob("digits", "what to measure", choices=tuple(TRIALS))
    classes: str = knob("3,6,8", "classes to forget, one search each; all parts but digits take the first")
    trials: int = knob(0, f"trials of a search; 0 takes {', '.join(map(str, TRIALS.values()))}", bounds=(0, 1000))
    steps: int = knob(150, "steps of a trial", bounds=(1, 100_000))
    samples: int = knob(
        50,
        "images of each retained class that measure a trial; twice as many of the forgotten one",
        bounds=(10, 10_000),
    )
    seeds: int = knob(3, "seeds of each sampler in hypervolume", bounds=(1, 100))
    model: str = knob("demo", "folder of the base; demo trains the demonstration's, once")

    def __post_init__(self) -> None:
        check(self)

    @property
    def count(self) -> int:
        """Trials of a search."""
        return self.trials or TRIALS[self.part]

    @property
    def first(self) -> str:
        """The class of the parts that take one."""
        return self.classes.split(",")[0]


@dataclass(frozen=True)
class Measured:
    """A search that has ended.

    Args:
        minutes: of its runs, which is all that a command takes except Python's own start.
        trial_minutes: from the first trial's start to the end of the last one's run.
        own_minutes: of the completed trials' own work: preparing, unlearning, sampling, measuring.
        spent_minutes: of the search on them: from each one's start to the next one's, or to the last run's end.
        completed: number of completed trials.
        volume: hypervolume of the trials.
        again: knobs and scores of the front and the defaults (trial 0) on fresh seeds, by trial.
    """

    minutes: float
    trial_minutes: float
    own_minutes: float
    spent_minutes: float
    completed: int
    volume: float
    again: dict[str, dict[str, float]]


def searched(options: BenchmarkOptions, stop: StopSignal, forget: str, *more: str, timed: bool = False) -> Measured:
    """Return a search of digits over lambda and lr at equal steps; it is run unless it is cached."""
    given = [
        f"--forget={forget}",
        f"--model={base_folder(options.model)}",
        f"--trials={options.count}",
        f"--steps={options.steps}",
    ]
    given += ["--accuracy_drop=100"] if timed else []  # no trial is left out
    given += [f"--retain_samples={options.samples}", f"--forget_samples={2 * options.samples}"]
    config = read_config([*given, f"--space={SPACE}", "--retain_weight=3.072", "--device=cpu", *more])
    facts = {"search": asdict(config.search), "request": config.key, "source": source(), "part": options.part}
    name = f"{options.part}-{cache.key(facts)}"
    path = Path(f"{name}.json")
    if not path.exists():
        study = f"{name}-{time.time_ns()}" if timed else name
        result = measured(replace(config, search=replace(config.search, study=study)), stop)
        path.write_text(json.dumps(asdict(result), indent=2) + "\n")
    return Measured(**json.loads(path.read_text()))


def measured(config: SearchConfig, stop: StopSignal) -> Measured:
    """Run a search and return its measurements."""
    address = run(config, stop)
    client, trials = tracking.store(), trials_of(config)
    evidence = model_versions.evidence(address)["search"]["scores"]
    completed = [each for each in trials if each.state == TrialState.COMPLETE]
    sessions = client.search_runs(
        [each.experiment_id for each in client.search_experiments()],
        f"tags.kind = 'search' and tags.`search.study` = '{config.study}'",
    )
    unit = client.get_run(str(model_versions.version_of(address).run_id)).data.metrics["search/base_quality"]
    edges = [*(_start(each) for each in trials), max(_end(client, each) for each in trials)]
    spans = {each.number: (after - before) for each, (before, after) in zip(trials, pairwise(edges), strict=True)}
    return Measured(
        minutes=sum(each.info.end_time - each.info.start_time for each in sessions) / 60_000,
        trial_minutes=edges[-1] - edges[0],
        own_minutes=sum(_own(each) for each in completed),
        spent_minutes=sum(spans[each.number] for each in completed),
        completed=len(completed),
        volume=figures.volumes(completed, (1.0, unit))[-1],
        again={number: {**trials[int(number)].params, **scores} for number, scores in evidence.items()},
    )


def trials_of(config: SearchConfig) -> list[FrozenTrial]:
    """Return the trials of a study that has ended."""
    journal = JournalStorage(JournalFileBackend(str(config.journal)))
    return optuna.load_study(study_name=config.study, storage=journal).get_trials(deepcopy=False)


def base_folder(model: str) -> Path:
    """Return the folder of the base; `demo` trains the demonstration's, once."""
    if model != "demo":
        return Path(model)
    diffusion = base_of(load("digits"))
    folder = cache.folder("bases") / f"demo-{diffusion.digest()[:16]}"
    if not folder.exists():
        atomic.create_folder(folder, diffusion.save)
    return folder


def digits(options: BenchmarkOptions, stop: StopSignal) -> None:
    """Measure whether each front has a point that dominates the paper's defaults on fresh seeds."""
    rows = []
    for forget in options.classes.split(","):
        result = searched(options, stop, forget, "--workers=2")
        rows += [{"class": forget, "minutes": result.minutes, **each} for each in compared_with_defaults(result)]
    frame = pd.DataFrame(rows).set_index("class").map(_short)
    remark = (
        f"Defaults: lambda = 1, lr = 1e-4. Each search: {options.count} trials of {options.steps} steps by two workers of one "
        "thread; minutes in all, including measuring the front and registering; base and judges were cached. forgetting: "
        "probability under the reject judges, 1e-6 where it is less; quality: FID of the retained classes minus the base's; "
        "both on fresh seeds with three times a trial's samples. Of the members that dominate the defaults the one of best "
        "quality is shown."
    )
    tables.write("search-digits", "The front compared with the paper's defaults", frame, remark)


def compared_with_defaults(result: Measured) -> list[dict[str, Any]]:
    """Return the defaults and the member of the front that dominates them at the best quality, if one does."""
    first = result.again["0"]
    better = {number: each for number, each in result.again.items() if dominates(_point(each), _point(first))}
    members = f"{len(better)} of {len(result.again) - 1} dominate"
    if not better:
        return [{"which": f"defaults, trial 0; {members}", **_shown(first)}]
    best = min(better, key=lambda number: better[number]["quality"])
    return [
        {"which": "defaults, trial 0", **_shown(first)},
        {"which": f"trial {best}; {members}", **_shown(better[best])},
    ]


def hypervolume(options: BenchmarkOptions, stop: StopSignal) -> None:
    """Measure how much better TPE is than random search."""
    rows = []
    for seed in range(options.seeds):
        for sampler in ("tpe", "random"):
            more = (f"--search_sampler={sampler}", f"--search_seed={seed}", "--prune=false", "--workers=2")
            result = searched(options, stop, options.first, *more, "--final_samples=1")
            rows.append({"seed": seed, "sampler": sampler, "hypervolume": result.volume})
    frame = pd.DataFrame(rows).pivot_table(index="seed", columns="sampler", values="hypervolume")
    frame.loc["mean"] = frame.mean()
    remark = (
        f"Class {options.first}. Reference point: probability 1 of the forgotten class, FID of the retained ones twice the "
        "base's; 1 is the whole rectangle from there to no forgetting left at the base's own FID."
    )
    tables.write("search-hypervolume", f"Hypervolume after {options.count} trials", frame, remark)


def overhead(options: BenchmarkOptions, stop: StopSignal) -> None:
    """Measure what search, tracking and storage add to the trials' own work."""
    result = searched(options, stop, options.first, timed=True)
    row = {
        "trials": result.completed,
        "s a trial, own work": 60 * result.own_minutes / result.completed,
        "s a trial, in all": 60 * result.spent_minutes / result.completed,
        "overhead %": 100 * (result.spent_minutes / result.own_minutes - 1),
    }
    remark = (
        "Own work: preparing, unlearning, sampling and measuring, as each trial's cost metrics say. In all: from a trial's start "
        "to the next one's, or to the end of the last one's run: this includes the probes for pruning, checkpoints and weights, "
        "the journal, the MLflow run with its picture, and the next proposal. Pruned trials are left out of both."
    )
    tables.write("search-overhead", "Overhead of a search", pd.DataFrame([row]).set_index("trials"), remark, digits=2)


def workers(options: BenchmarkOptions, stop: StopSignal) -> None:
    """Measure the gain from a second worker."""
    more = ("--prune=false", "--final_samples=1")
    results = {n: searched(options, stop, options.first, *more, f"--workers={n}", timed=True) for n in (1, 2)}
    rows = [
        {
            "workers": n,
            "trials": each.completed,
            "minutes of trials": each.trial_minutes,
            "minutes in all": each.minutes,
        }
        for n, each in results.items()
    ]
    trials, whole = (getattr(results[2], key) / getattr(results[1], key) for key in ("trial_minutes", "minutes"))
    remark = (
        f"{options.count} trials. Two workers take {trials:.2f} of one worker's time for the trials and {whole:.2f} in all, "
        "including loading the workers, measuring the front on fresh seeds and registering. The bar is 0.6."
    )
    tables.write("search-workers", "One worker and two", pd.DataFrame(rows).set_index("workers"), remark)


def engine(options: BenchmarkOptions, stop: StopSignal) -> None:
    """Measure what the engine costs a study, and its share of one whose trials take as long as those of `workers`."""
    workers_table = tables.FOLDER / "search-workers.csv"
    if not workers_table.exists():
        raise InputError(f"{workers_table} does not exist; run --part=workers first: it says how long trials take")
    measured_trials = pd.read_csv(workers_table, index_col="workers")
    rows = {n: empty_jobs.seconds(options.count, n) for n in (1, 2)}
    frame = pd.DataFrame(rows).T.rename_axis("workers")
    frame["in all s"] = frame.sum(axis=1)
    own = 60 * measured_trials.loc[2, "minutes of trials"] * options.count / measured_trials.loc[2, "trials"]
    added = frame.loc[2, "in all s"] - frame.loc[1, "in all s"]
    remark = (
        f"{options.count} trials that do nothing; one worker is the command's own process, two are on Ray. The engine takes "
        f"{added:.1f} s of a study; of {options.count} trials that two workers do in {own:.0f} s, as "
        f"[measured](search-workers.md), that is {100 * added / own:.2f} %. The bars are 10 s and 2 %."
    )
    tables.write("search-engine", "What the engine costs a study", frame, remark, digits=2)


def _own(trial: FrozenTrial) -> float:
    return sum(trial.user_attrs["metrics"][f"cost/{kind}_minutes"] for kind in ("setup", "runtime", "evaluation"))


def _start(trial: FrozenTrial) -> float:
    assert trial.datetime_start  # only a waiting trial has none
    return trial.datetime_start.timestamp() / 60


def _end(client: MlflowClient, trial: FrozenTrial) -> float:
    return client.get_run(trial.user_attrs["runs"][-1]).info.end_time / 60_000


def _point(scores: dict[str, float]) -> tuple[float, float]:
    return scores["forgetting"], scores["quality"]


def _shown(scores: dict[str, float]) -> dict[str, float]:
    return {name: scores[name] for name in ("lambda", "lr", "forgetting", "quality", "accuracy_drop")}


def _short(value: object) -> object:
    return f"{value:.3g}" if isinstance(value, float) else value


def benchmark(argv: Sequence[str]) -> None:
    """Measure one part and write its table."""
    stop = stop_on_signals()
    options = parse("python -m benchmarks.search", __doc__ or "", {"options": BenchmarkOptions}, argv)["options"]
    if options.model != "demo":
        options = replace(options, model=str(Path(options.model).absolute()))
    os.environ["SAFEMAX_CACHE"] = str(cache.folder("").absolute())
    place = cache.folder("benchmarks") / "search"
    place.mkdir(parents=True, exist_ok=True)
    dataset = load("digits")
    reference(
        dataset, judges(dataset, JudgeConfig())
    )  # as after `make demo`: the first search must not be charged for them
    os.chdir(place)
    mlflow.set_tracking_uri(f"sqlite:///{place}/mlflow.db")
    parts = {"digits": digits, "hypervolume": hypervolume, "overhead": overhead, "workers": workers, "engine": engine}
    parts[options.part](options, stop)


if __name__ == "__main__":
    main(benchmark)
