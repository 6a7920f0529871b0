"""The trials of a study: which one is next, the results, and which ones are the front; only the coordinator opens it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import RandomSampler
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from hpo import storage
from hpo.proposal import OBJECTIVES, RETRIED, StudyPlan, propose, quiet
from pipelines import tracking

# A trial is pruned when at least 5 have completed and 75 % of them were far better at this point: no worse in knowledge and
# damage, and by 0.25 better in one of them. Smaller differences in loss do not tell which samples will be better.
_RIVALS, _SHARE, _MARGIN = 5, 0.75, 0.25
_JOINT_FRONT = 5  # members of the "front" of a single objective
_ENDED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


class TrialLost(Exception):
    """Another machine considers this one dead and runs its trial again."""


class TrialScheduler:
    """The trials of a study: proposes them, and records how they go and how they end.

    A trial has all its values from the start. They follow from seed, number and the trials so far; no sampler keeps state,
    so a study that was stopped and resumed has the same trials as one that was not. A trial whose coordinator died is resumed
    under its number. On a shared storage, a trial whose machine died fails and is copied, as Optuna does it; the trial and its
    copies count once.
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
            with quiet():
                self.study.set_metric_names(list(goals))  # optuna-dashboard's axes
        self._running: dict[int, Trial] = {}

    @property
    def trials(self) -> list[FrozenTrial]:
        """All trials, by number."""
        return self.study.get_trials(deepcopy=False)

    @property
    def completed(self) -> list[FrozenTrial]:
        """Trials with a result, by number."""
        return [each for each in self.trials if each.state == TrialState.COMPLETE]

    @property
    def num_ended(self) -> int:
        """How many trials have ended for good; a trial and its copies count once."""
        copied = {each.system_attrs[RETRIED][-1] for each in self.trials if RETRIED in each.system_attrs}
        return sum(each.state in _ENDED and each.number not in copied for each in self.trials)

    def start_next(self) -> FrozenTrial | None:
        """Start the next trial and return it; None where there is none, or none yet."""
        with self._store.alone(), quiet():
            trial = self._adopt_orphan() or self._propose_next()
            if trial is None:
                return None
            trial.set_user_attr("owner", tracking.this_process())
            self._running[trial.number] = trial
            self._record_heartbeat(trial.number)
        return self.trials[trial.number]

    def report(self, number: int, percent: int, knowledge: float, damage: float) -> bool:
        """Record a running trial's knowledge and damage (see hpo.probe.Probe); return whether to prune it.

        Raises:
            TrialLost: another machine runs it by now, here as in `complete`, `end` and `set_attrs`.
        """
        self.set_attrs(number, **{f"probe_{percent}": [knowledge, damage]})
        trial = self._running[number]
        if self.plan.objective == "joint":
            with quiet():
                trial.report((knowledge + damage) // _MARGIN * _MARGIN, percent)
                return bool(trial.should_prune())  # optuna's percentile pruner gives numpy's bool, which JSON refuses
        rivals = [
            each.user_attrs[f"probe_{percent}"] for each in self.completed if f"probe_{percent}" in each.user_attrs
        ]
        better = sum(_is_far_better(each, (knowledge, damage)) for each in rivals)
        return len(rivals) >= _RIVALS and better >= _SHARE * len(rivals)

    def complete(self, number: int, scores: Mapping[str, float], attrs: Mapping[str, Any]) -> None:
        """End a trial with its scores (hpo.objective.scores), its constraint, and other attributes."""
        self.set_attrs(number, scores=dict(scores), **attrs)
        trial = self._running.pop(number)
        if not self._is_constrained(trial):
            trial.set_constraint("accuracy", scores["accuracy_drop"] - self.plan.accuracy_drop)
        values = [scores[goal] for goal in OBJECTIVES[self.plan.objective]]
        self.study.tell(number, values, skip_if_finished=self._store.shared)

    def end(self, number: int, state: TrialState, attrs: Mapping[str, Any]) -> None:
        """End a trial as PRUNED or FAIL."""
        self.set_attrs(number, ended=state.name.lower(), **attrs)
        del self._running[number]
        self.study.tell(number, state=state, skip_if_finished=self._store.shared)

    def set_attrs(self, number: int, **attrs: Any) -> None:
        """Set user attributes of a running trial."""
        try:
            for key, value in attrs.items():
                self._running[number].set_user_attr(key, value)
        except UpdateFinishedTrialError:
            del self._running[number]
            raise TrialLost(number) from None

    def is_running_here(self, number: int) -> bool:
        """Return whether this coordinator runs a trial."""
        return number in self._running

    @contextmanager
    def heartbeats(self) -> Iterator[None]:
        """Record heartbeats of the running trials on a shared storage inside, in a thread: a trial may run in this process."""
        if not self._store.shared:
            yield
            return
        over = threading.Event()
        thread = threading.Thread(target=self._beat, args=(over,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _beat(self, over: threading.Event) -> None:
        while not over.wait(storage.HEARTBEAT_SECONDS):
            for number in list(self._running):
                with suppress(
                    KeyError, SQLAlchemyError
                ):  # it has just ended; or the database is away, until the next beat
                    self._record_heartbeat(number)

    def front(self) -> list[FrozenTrial]:
        """Return the best trials within the constraint: the Pareto front, or the five best of a joint objective."""
        allowed = [each for each in self.completed if max(each.constraints.values(), default=0) <= 0]
        if self.plan.objective == "joint":
            return sorted(allowed, key=lambda each: each.values[0])[:_JOINT_FRONT]
        return [a for a in allowed if not any(dominates(b.values, a.values) for b in allowed)]

    def _adopt_orphan(self) -> Trial | None:
        """Return a running trial whose coordinator is dead."""
        for each in self.trials:
            if each.state == TrialState.RUNNING and each.number not in self._running and self.is_orphan(each):
                return Trial(self.study, each._trial_id)
        return None

    def is_orphan(self, trial: FrozenTrial) -> bool:
        """Return whether the coordinator of a running trial is known to be dead; a lost heartbeat tells it of other machines."""
        return not self._store.shared or tracking.alive(trial.user_attrs.get("owner")) is False

    def _propose_next(self) -> Trial | None:
        """Start the waiting copy of a failed trial, or a new one."""
        if self._store.shared:
            optuna.storages.fail_stale_trials(self.study)
        trials = self.trials
        waiting = any(each.state == TrialState.WAITING for each in trials)
        if not waiting:
            if sum(RETRIED not in each.system_attrs for each in trials) >= self.plan.size:
                return None
            self.study.add_trial(propose(self.plan, trials))
        return self.study.ask()

    def _record_heartbeat(self, number: int) -> None:
        if isinstance(self._store.storage, optuna.storages.RDBStorage):
            self._store.storage.record_heartbeat(self._running[number]._trial_id)

    def _is_constrained(self, trial: Trial) -> bool:
        """Return whether the constraint was set before a kill: Optuna allows setting it once."""
        return bool(self.trials[trial.number].constraints)


def dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    """Return whether one is at least as low everywhere and lower somewhere."""
    return all(a <= b for a, b in zip(one, other, strict=True)) and any(a < b for a, b in zip(one, other, strict=True))


def _is_far_better(one: Sequence[float], other: Sequence[float]) -> bool:
    gains = [b - a for a, b in zip(one, other, strict=True)]
    return min(gains) >= 0 and max(gains) > _MARGIN
