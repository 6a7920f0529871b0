"""Which trial comes next in a study: the defaults first, then what a sampler proposes after the trials so far."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from hpo.space import Number, Space
from safemax.data.batches import derive_seed
from safemax.errors import InputError, note

SAMPLERS = ("tpe", "gp", "nsga2", "random", "grid")
# What each objective minimises, by the names of hpo.objective.scores.
OBJECTIVES = {
    "two": ("forgetting", "quality"),
    "three": ("forgetting", "quality", "minutes"),
    "joint": ("joint",),
}
POPULATION = 50  # of nsga2, Optuna's default
RETRIED = "retry_history"  # Optuna's attribute of the copy of a failed trial: the numbers of the earlier ones


@dataclass(frozen=True)
class StudyPlan:
    """What decides the trials of a study.

    Args:
        name: of the study.
        space: what trials are sampled from.
        trials: their number.
        objective: a key of OBJECTIVES.
        sampler: one of SAMPLERS.
        seed: of the sampler.
        accuracy_drop: points of retained accuracy that a trial may lose.
    """

    name: str
    space: Space
    trials: int
    objective: str
    sampler: str
    seed: int
    accuracy_drop: float

    @property
    def size(self) -> int:
        """Number of trials; a grid may have fewer points than `trials`."""
        if self.sampler != "grid":
            return self.trials
        return min(self.trials, 1 + len(self.space.grid(self.trials - 1, self.seed)))


def propose(plan: StudyPlan, trials: Sequence[FrozenTrial]) -> FrozenTrial:
    """Return the next trial, waiting: the defaults first, then what the sampler proposes after the trials so far."""
    number, distributions = len(trials), plan.space.distributions()
    if number == 0:
        return _waiting_trial(plan.space.first, distributions, {})
    if plan.sampler == "grid":
        # The copy of a failed trial already has a point.
        points = sum(RETRIED not in each.system_attrs for each in trials)
        return _waiting_trial(plan.space.grid(plan.trials - 1, plan.seed)[points - 1], distributions, {})
    goals = OBJECTIVES[plan.objective]
    with quiet():
        sampler = _sampler(plan.sampler, derive_seed(plan.seed, number) % 2**32)
        shadow = optuna.create_study(directions=["minimize"] * len(goals), sampler=sampler)
        shadow.add_trials(trials)
        proposal = shadow.ask(distributions)
    return _waiting_trial(proposal.params, distributions, shadow.get_trials(deepcopy=False)[-1].system_attrs)


def warn_of_population(plan: StudyPlan) -> None:
    """Warn where nsga2 would be little more than random search: its first population is random."""
    if plan.sampler == "nsga2" and plan.trials <= 2 * POPULATION:
        note(
            f"search_sampler = nsga2 draws its first {POPULATION} trials at random, and trials = {plan.trials}: below "
            f"{2 * POPULATION} it is little more than random search; tpe is not"
        )


def _sampler(name: str, seed: int) -> BaseSampler:
    if name == "tpe":
        return TPESampler(seed=seed)
    if name == "gp":
        return GPSampler(seed=seed)
    if name == "nsga2":
        return NSGAIISampler(seed=seed, population_size=POPULATION)
    if name == "random":
        return RandomSampler(seed=seed)
    raise InputError(f"search_sampler = {name} is not allowed; known: {', '.join(SAMPLERS)}")


def _waiting_trial(
    values: Mapping[str, Number], distributions: dict[str, Any], attributes: Mapping[str, Any]
) -> FrozenTrial:
    return optuna.create_trial(
        state=TrialState.WAITING, params=dict(values), distributions=distributions, system_attrs=dict(attributes)
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Optuna's warnings about what this module does on purpose: heartbeats without `optimize`, repeated reports."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="optuna")
        warnings.filterwarnings("ignore", message=".*(Heartbeat|already reported|experimental).*")
        yield
