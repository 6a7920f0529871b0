"""What a study has found so far, in words: the note of its run while trials run, and where none met the constraint."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence

import pandas as pd
from optuna.trial import FrozenTrial

from hpo.config import PREFERENCES, SearchConfig
from hpo.study import TrialScheduler
from safemax.reports.images_and_tables import as_markdown
from safemax.reports.numbers import counted, quantity

PATIENCE = 30.0  # seconds between two notes
_SHOWN = 6  # members of the front in a note

Scores = Mapping[str, float]


class StudyNote:
    """How far a study is, for its run.

    Args:
        config: what is searched.
        scheduler: the study.
        unit: one unit of quality (hpo.objective.unit).
    """

    def __init__(self, config: SearchConfig, scheduler: TrialScheduler, unit: float) -> None:
        self.config, self.scheduler, self.unit = config, scheduler, unit
        self._noted = -math.inf

    def is_due(self) -> bool:
        """Return whether the last note is old, and take this one as written."""
        if time.monotonic() - self._noted < PATIENCE:
            return False
        self._noted = time.monotonic()
        return True

    def text(self, picture: str, left: str) -> str:
        """Return the markdown of the note.

        Args:
            picture: markdown of the newest picture of the front, "" where there is none.
            left: the time left, such as ", about 12 min left"; "" where it is not known.
        """
        done, size, front = self.scheduler.num_ended, self.scheduler.plan.size, self.scheduler.front()
        opening = f"**Search under way**: {done} of {counted(size, 'trial')} ended{left}."
        if not front:
            return f"{opening} {none_allowed(self.config, self.scheduler)}"
        scores = {each.number: each.user_attrs["scores"] for each in front}
        best = choose(scores, self.config, self.unit)
        table = as_markdown(front_table(front[:_SHOWN], best))
        more = f"\n\nand {len(front) - _SHOWN} more" if len(front) > _SHOWN else ""
        return (
            f"{opening} Best so far by prefer={self.config.search.prefer}: trial {best}, {in_words(scores[best])}.\n\n"
            f"{picture}\n\nThe front so far:\n\n{table}{more}"
        )


def begun(config: SearchConfig) -> str:
    """Return the note of a study whose workers are loading."""
    return (
        f"**Search under way**: {config.method_name} on {config.class_names}, "
        f"{counted(config.search.trials, 'trial')} to run. The judges and the base are being measured first."
    )


def in_words(scores: Scores) -> str:
    """Return the scores of a trial, in a line."""
    return (
        f"probability of the class {quantity(scores['forgetting'])}, quality {scores['quality']:+.3f} against the base "
        f"(lower is better), accuracy drop {quantity(scores['accuracy_drop'], 'points')} points"
    )


def front_table(members: Sequence[FrozenTrial], best: int) -> pd.DataFrame:
    """Return a row a trial: its knobs and its scores, as text; the best one is marked."""
    rows = []
    for each in members:
        scores = each.user_attrs["scores"]
        knobs = {name: quantity(value) for name, value in each.params.items()}
        rows.append(knobs | {name: quantity(scores[name]) for name in ("forgetting", "quality", "accuracy_drop")})
    names = [f"{each.number} (best)" if each.number == best else str(each.number) for each in members]
    return pd.DataFrame(rows, index=pd.Index(names, name="trial"))


def none_allowed(config: SearchConfig, scheduler: TrialScheduler) -> str:
    """Return that no trial is within the constraint, and the one that comes nearest, in a sentence."""
    limit, completed = config.search.accuracy_drop, scheduler.completed
    if not completed:
        return "No trial has a result yet."
    nearest = min(completed, key=lambda each: each.user_attrs["scores"]["accuracy_drop"])
    drop = nearest.user_attrs["scores"]["accuracy_drop"]
    return (
        f"No trial is within accuracy_drop = {limit:g} points; the nearest is trial {nearest.number}, which loses "
        f"{quantity(drop, 'points')} points."
    )


def advice(config: SearchConfig, scheduler: TrialScheduler) -> str:
    """Return what to try after a study whose trials all broke the constraint or had no result."""
    completed, trials = scheduler.completed, scheduler.trials
    if not completed:
        reasons = [each.user_attrs["reason"] for each in trials if "reason" in each.user_attrs]
        if reasons:
            more = "once its cause is gone, the same command with more trials continues the study"
            return f"The first failure was: {reasons[0]}; {more}."
        return "All trials were pruned: run the search again with prune=false."
    nearest = min(completed, key=lambda each: each.user_attrs["scores"]["accuracy_drop"])
    drop = math.ceil(10 * nearest.user_attrs["scores"]["accuracy_drop"]) / 10
    tips = [
        f"accuracy_drop={drop:g} would accept trial {nearest.number} (in a new study, since the constraint guides the search)"
    ]
    if "lr" in nearest.params:
        tips.append(f"a smaller learning rate, such as space=lr=1e-6:{nearest.params['lr']:.1e}:log, damages less")
    if "retain_weight" in nearest.params:
        tips.append("a larger retain_weight protects the other classes")
    tips.append(f"trials={2 * scheduler.plan.size} extends this study")
    return f"What may help: {'; '.join(tips)}."


def choose(front: Mapping[int, Scores], config: SearchConfig, unit: float) -> int:
    """Return the number of the trial to register: of those within the constraint on fresh seeds too, or else of all.

    The knee is the member nearest to the ideal, forgetting 0 at the base's own quality. One unit of quality is the base's
    distance from real images (the joint objective's unit); scaled by the front's own extent instead, a probability of 1e-4
    could count as much as a doubled FID. A joint objective has no knee: the lowest score wins.
    """
    allowed = {n: each for n, each in front.items() if each["accuracy_drop"] <= config.search.accuracy_drop} or front
    key = PREFERENCES[config.search.prefer] or ("joint" if config.search.objective == "joint" else "")
    if key:
        return min(allowed, key=lambda n: (allowed[n][key], allowed[n]["quality"]))
    return min(allowed, key=lambda n: allowed[n]["forgetting"] ** 2 + (max(0.0, allowed[n]["quality"]) / unit) ** 2)
