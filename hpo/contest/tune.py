"""The search of a method's own knobs and learning rate, by the same rules for every method."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import mean
from typing import Any

import optuna

from hpo import space
from hpo.contest.config import SEARCH_BASE, SEARCH_SEED, Correction
from hpo.contest.work import Workshop
from safemax.errors import InputError, NonFiniteError

MOST_RECOGNISED = 2.0  # percent: a trial with more has not forgotten
FAILED = 3.0
RANDOM_TRIALS = 5  # before TPE has enough to go by


@dataclass(frozen=True)
class Found:
    """What a search found.

    Args:
        values: knobs that differ from the defaults, by field; {} where the defaults were best.
        trials: every trial: its values, score, percent recognised, FID, rows, and on how many classes it was run.
        best: number of the best one; 0 are the defaults.
        classes: names of the search's classes.
    """

    values: dict[str, Any]
    trials: list[dict[str, Any]]
    best: int
    classes: list[str]

    def describe(self) -> dict[str, Any]:
        """Return it as JSON, with what it cost."""
        cost = {name: sum(each.get(name, 0) for each in self.trials) for name in ("rows", "prior_rows", "minutes")}
        return {
            "values": self.values, "best": self.best, "classes": self.classes, "cost": cost, "trials": self.trials,
        }  # fmt: skip


def score(recognised: float, fid: float) -> float:
    """Return what the search minimises: among trials that forgot the lowest FID, else the nearest to having forgotten.

    Args:
        recognised: percent of the forgotten class's samples, the worst of the search's classes.
        fid: of the retained classes, the mean.

    Returns:
        in [0, 1) for a trial with at most MOST_RECOGNISED percent, in (1, 2] for others.
    """
    if not (math.isfinite(recognised) and math.isfinite(fid)):
        return FAILED
    return fid / (1 + fid) if recognised <= MOST_RECOGNISED else 1 + recognised / 100


def search(workshop: Workshop, name: str) -> Found:
    """Search a method's knobs on a base, classes and seeds that the report never uses; trial 0 are the defaults.

    The search keeps no state of its own: trials follow from their results, which are kept, so that a stopped search
    proposes the same trials again and goes on where it was.
    """
    contest = workshop.contest
    method, training = contest.method(name, {})
    held = "steps=1" if training.steps else f"steps=1,lr={training.lr}"  # steps follow from the rows
    found = space.read(held, method, training)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0, n_startup_trials=RANDOM_TRIALS))
    study.enqueue_trial(dict(found.first))
    trials: list[dict[str, Any]] = []
    for number in range(contest.options.tune):
        asked = study.ask(dict(found.distributions()))
        values = {} if number == 0 else _by_field(asked.params, method, training)
        least = min((each["score"] for each in trials), default=math.inf)
        trials.append({"values": values, **_trial(workshop, name, values, least)})
        study.tell(asked, trials[-1]["score"])
        print(f"{name}: trial {number + 1} of {contest.options.tune}, score {trials[-1]['score']:.3f}", flush=True)
    best = min(range(len(trials)), key=lambda number: trials[number]["score"])
    return Found(trials[best]["values"], trials, best, contest.tune_names)


def _by_field(params: Mapping[str, Any], *owners: Any) -> dict[str, Any]:
    return {key: value for owner in owners for key, value in space.by_field(params, type(owner)).items()}


def _trial(workshop: Workshop, name: str, values: dict[str, Any], least: float) -> dict[str, Any]:
    """Return what a trial gave. It ends after the class that leaves it no way below the least score of those before it."""
    results: list[dict[str, Any]] = []
    classes = workshop.contest.tune_classes
    for label in classes:
        correction = Correction(
            name, tuple(sorted(values.items())), SEARCH_BASE, label, SEARCH_SEED, (SEARCH_SEED,), trial=True
        )
        try:
            results.append(workshop.correct(correction))
        except (InputError, NonFiniteError) as error:
            return {"score": FAILED, "failed": str(error)}
        rows = [each["rows"][0] for each in results]
        recognised, fids = max(each["recognised"] for each in rows), [each["fid"] for each in rows]
        if score(recognised, sum(fids) / len(classes)) >= least:  # were FID 0 on the classes that are left
            break
    cost = {key: sum(each["cost"][key] for each in results) for key in ("rows", "prior_rows", "minutes")}
    fid = mean(fids)
    return {
        "score": score(recognised, fid), "recognised": recognised, "fid": fid, "classes": len(results), **cost,
    }  # fmt: skip


def preset(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tuned knobs of a result file as a preset, with the steps that the contest's rows paid for."""
    values = result["search"]["values"]
    rounded = {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in values.items()}
    steps = next(int(each["cost"]["steps"]) for each in result["corrections"])
    return rounded | ({"steps": steps} if steps else {})
