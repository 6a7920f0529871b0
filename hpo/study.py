"""A study's books: which trial is next, what each one brought, which ones are the front; only the coordinator opens them."""

from __future__ import annotations

import os
import socket
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import optuna
import psutil
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, Trial, TrialState

from hpo import storage
from hpo.space import Number, Space
from pipelines import tracking
from safemax.data.batches import derive_seed
from safemax.errors import InputError

SAMPLERS = ("tpe", "gp", "nsga2", "random", "grid")
# What each objective minimises, by the names of hpo.objective.scores.
OBJECTIVES = {
    "two": ("forgetting", "quality"),
    "three": ("forgetting", "quality", "minutes"),
    "joint": ("joint",),
}
POPULATION = 50  # of nsga2, Optuna's default
_RIVALS, _SHARE = 5, 0.75  # a trial is given up when so many finished ones, and this share of them, were better by then
# By so much of what the base knows, or of its loss: smaller differences in loss do not tell which samples will be better.
_MARGIN = 0.25
_BEST_JOINT = 5  # members of the "front" of a single objective
RETRIED = "retry_history"  # Optuna's mark on the copy of a failed trial: the numbers of those before it
_OVER = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


@dataclass(frozen=True)
class StudyPlan:
    """What decides the course of a study.

    Args:
        name: of the study.
        space: what is drawn.
        trials: how many.
        objective: two, three or joint.
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
        """Trials in all; a grid may have fewer points than were asked for."""
        if self.sampler != "grid":
            return self.trials
        return min(self.trials, 1 + len(self.space.grid(self.trials - 1, self.seed)))


class TrialLost(Exception):
    """A trial that another machine has taken for dead, and runs again."""


class TrialScheduler:
    """The trials of a study, past and present.

    A trial is born with all its values, which follow from (seed, number, trials so far) alone: no sampler keeps state, so
    that a study is the same whether or not it was stopped. A trial whose coordinator died is taken up again under its
    number; on a shared storage, one whose machine died fails and is copied, as Optuna does it, and the copies count once.
    """

    def __init__(self, plan: StudyPlan, store: storage.Store) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.plan, self._store = plan, store
        goals = OBJECTIVES[plan.objective]
        self.study = optuna.create_study(
            storage=store.storage, study_name=plan.name, directions=["minimize"] * len(goals), load_if_exists=True,
            sampler=RandomSampler(), pruner=optuna.pruners.PercentilePruner(100 * _SHARE, n_startup_trials=_RIVALS),
        )  # fmt: skip
        if self.study.metric_names is None:
            with _quiet():
                self.study.set_metric_names(list(goals))  # optuna-dashboard's axes
        self._mine: dict[int, Trial] = {}
        self._beaten = time.monotonic()

    @property
    def trials(self) -> list[FrozenTrial]:
        """All trials, by number."""
        return self.study.get_trials(deepcopy=False)

    @property
    def completed(self) -> list[FrozenTrial]:
        """Trials with a result, by number."""
        return [each for each in self.trials if each.state == TrialState.COMPLETE]

    @property
    def over(self) -> int:
        """How many trials have ended for good; a trial and its copies are one."""
        copied = {each.system_attrs[RETRIED][-1] for each in self.trials if RETRIED in each.system_attrs}
        return sum(each.state in _OVER and each.number not in copied for each in self.trials)

    def take(self) -> FrozenTrial | None:
        """Return the trial to run next, now running; None where none is to be had (yet)."""
        with self._store.alone(), _quiet():
            trial = self._orphan() or self._next()
            if trial is None:
                return None
            trial.set_user_attr("owner", _OWNER)
            self._mine[trial.number] = trial
            self._beat(trial.number)
        return self.trials[trial.number]

    def report(self, number: int, percent: int, knowledge: float, damage: float) -> bool:
        """Note how a trial does on its way (see hpo.objective.Probe); return whether to give it up.

        Raises:
            TrialLost: it is no longer this machine's, here as in `complete`, `end` and `note`.
        """
        self.note(number, **{f"probe_{percent}": [knowledge, damage]})
        trial = self._mine[number]
        if self.plan.objective == "joint":
            with _quiet():
                trial.report((knowledge + damage) // _MARGIN * _MARGIN, percent)
                return trial.should_prune()
        rivals = [
            each.user_attrs[f"probe_{percent}"] for each in self.completed if f"probe_{percent}" in each.user_attrs
        ]
        better = sum(_is_far_better(each, (knowledge, damage)) for each in rivals)
        return len(rivals) >= _RIVALS and better >= _SHARE * len(rivals)

    def complete(self, number: int, scores: Mapping[str, float], facts: Mapping[str, Any]) -> None:
        """End a trial with its scores (hpo.objective.scores), a constraint, and whatever else is to be kept of it."""
        self.note(number, scores=dict(scores), **facts)
        trial = self._mine.pop(number)
        if not self._is_constrained(trial):
            trial.set_constraint("accuracy", scores["accuracy_drop"] - self.plan.accuracy_drop)
        values = [scores[goal] for goal in OBJECTIVES[self.plan.objective]]
        self.study.tell(number, values, skip_if_finished=self._store.shared)

    def end(self, number: int, state: TrialState, facts: Mapping[str, Any]) -> None:
        """End a trial as PRUNED or FAIL."""
        self.note(number, ended=state.name.lower(), **facts)
        del self._mine[number]
        self.study.tell(number, state=state, skip_if_finished=self._store.shared)

    def note(self, number: int, **facts: Any) -> None:
        """Keep facts of a running trial."""
        try:
            for key, value in facts.items():
                self._mine[number].set_user_attr(key, value)
        except UpdateFinishedTrialError:
            del self._mine[number]
            raise TrialLost(number) from None

    def holds(self, number: int) -> bool:
        """Return whether a trial is under way here."""
        return number in self._mine

    def tick(self) -> None:
        """Give a sign of life for the running trials, where the storage wants one; to be called every few seconds."""
        if self._store.shared and time.monotonic() - self._beaten > storage.HEARTBEAT_SECONDS:
            for number in self._mine:
                self._beat(number)
            self._beaten = time.monotonic()

    def front(self) -> list[FrozenTrial]:
        """Return the best trials that keep to the constraint: the Pareto front, or the five best of a joint objective."""
        kept = [each for each in self.completed if max(each.constraints.values(), default=0) <= 0]
        if self.plan.objective == "joint":
            return sorted(kept, key=lambda each: each.values[0])[:_BEST_JOINT]
        return [a for a in kept if not any(dominates(b.values, a.values) for b in kept)]

    def _orphan(self) -> Trial | None:
        """Take up a trial whose coordinator is gone."""
        for each in self.trials:
            if each.state == TrialState.RUNNING and each.number not in self._mine and self.is_orphan(each):
                return Trial(self.study, each._trial_id)
        return None

    def is_orphan(self, trial: FrozenTrial) -> bool:
        """Return whether the coordinator of a running trial is known to be dead."""
        return not self._store.shared or not tracking.alive({"env.process": trial.user_attrs.get("owner", "?/0/0")})

    def _next(self) -> Trial | None:
        """Take the copy of a failed trial that waits, or a new one."""
        if self._store.shared:
            optuna.storages.fail_stale_trials(self.study)
        trials = self.trials
        waiting = any(each.state == TrialState.WAITING for each in trials)
        if not waiting:
            if sum(RETRIED not in each.system_attrs for each in trials) >= self.plan.size:
                return None
            self.study.add_trial(propose(self.plan, trials))
        return self.study.ask()

    def _beat(self, number: int) -> None:
        if isinstance(self._store.storage, optuna.storages.RDBStorage):
            self._store.storage.record_heartbeat(self._mine[number]._trial_id)

    def _is_constrained(self, trial: Trial) -> bool:
        """Return whether the constraint was written before a kill: Optuna takes it once."""
        return bool(self.trials[trial.number].constraints)


def propose(plan: StudyPlan, trials: Sequence[FrozenTrial]) -> FrozenTrial:
    """Return the next trial, not begun: the defaults first, then what the sampler makes of the trials so far."""
    number, distributions = len(trials), plan.space.distributions()
    if number == 0:
        return _born(plan.space.first, distributions, {})
    if plan.sampler == "grid":
        # The copy of a failed trial has a point already.
        points = sum(RETRIED not in each.system_attrs for each in trials)
        return _born(plan.space.grid(plan.trials - 1, plan.seed)[points - 1], distributions, {})
    goals = OBJECTIVES[plan.objective]
    with _quiet():
        sampler = _sampler(plan.sampler, derive_seed(plan.seed, number) % 2**32)
        shadow = optuna.create_study(directions=["minimize"] * len(goals), sampler=sampler)
        shadow.add_trials(trials)
        drawn = shadow.ask(distributions)
    return _born(drawn.params, distributions, shadow.get_trials(deepcopy=False)[-1].system_attrs)


def dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    """Return whether one is at least as low everywhere and lower somewhere."""
    return all(a <= b for a, b in zip(one, other, strict=True)) and any(a < b for a, b in zip(one, other, strict=True))


def _is_far_better(one: Sequence[float], other: Sequence[float]) -> bool:
    gains = [b - a for a, b in zip(one, other, strict=True)]
    return min(gains) >= 0 and max(gains) > _MARGIN


def warn_of_population(plan: StudyPlan) -> None:
    """Warn where nsga2 would be random search: its first population is drawn blindly."""
    if plan.sampler == "nsga2" and plan.trials <= 2 * POPULATION:
        warnings.warn(
            f"search_sampler = nsga2 draws its first {POPULATION} trials at random, and trials = {plan.trials}: below "
            f"{2 * POPULATION} it is little but random search; tpe is not",
            stacklevel=2,
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


def _born(values: Mapping[str, Number], distributions: dict[str, Any], attributes: Mapping[str, Any]) -> FrozenTrial:
    return optuna.create_trial(
        state=TrialState.WAITING, params=dict(values), distributions=distributions, system_attrs=dict(attributes)
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Optuna's advice on what this module does on purpose: heartbeats without `optimize`, reports made twice."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="optuna")
        warnings.filterwarnings("ignore", message=".*(Heartbeat|already reported|experimental).*")
        yield


_OWNER = f"{socket.gethostname()}/{os.getpid()}/{int(psutil.Process().create_time())}"  # as tracking.alive reads it
