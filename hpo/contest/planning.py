"""What a contest would do, and how long that takes on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from hpo.contest.config import BASE, GOLD, SEARCH_BASE, Contest
from hpo.contest.work import Workshop
from pipelines.planning.plan import Plan, Stage, alike
from pipelines.planning.stages import Planner
from pipelines.planning.work import work_of
from safemax.attacks import find as find_attack
from safemax.attacks.base import Setting
from safemax.reports.numbers import counted


def plan_of(contest: Contest, product: str) -> Plan:
    """Return a contest's plan.

    Args:
        contest: what would be compared.
        product: the experiment of its run.
    """
    workshop, options, training = Workshop(contest), contest.options, contest.base_training(0)
    diffusion = contest.network.create(workshop.dataset, 0)
    planner = Planner.measured(diffusion, workshop.dataset, contest.classes[:1], training)
    numbers = [*range(options.bases), *([SEARCH_BASE] if options.tune else [])]
    bases = [planner.pretrain(training, reused=workshop.folder(BASE, each, ()).exists()) for each in numbers]
    gold = [
        replace(planner.gold(training), reused=workshop.folder(GOLD, base, (label,)).exists())
        for base in range(options.bases)
        for label in contest.classes
    ]
    stages = [*planner.judges(contest.judging), alike(bases, "bases"), alike(gold, "gold models", options.workers)]
    stages += _entries(planner, contest)
    logs = f"a run in the experiment {product} with the report; result files in the folder {options.files}; no version."
    basis = (
        f"{planner.basis} What an earlier contest searched, corrected or measured is not done again, but counted here."
    )
    title = f"contest of {counted(len(options.method_names), 'method')} on {workshop.dataset.name}"
    return Plan(title, stages, logs, basis)


def _entries(planner: Planner, contest: Contest) -> Iterator[Stage]:
    """Yield the stages of base and gold and of every method, over all bases."""
    options, models = contest.options, contest.options.bases * len(contest.classes)
    evaluation = planner.draw("corrected", contest.evaluation).minutes
    measured = options.evaluations * evaluation
    attacked = _attacks(planner, contest)
    does = f"draw and measure {counted(2 * models, 'model')}"
    yield Stage("base and gold", does, 2 * models * (measured + attacked), parallel=options.workers)
    variants = 2 if options.tune else 1
    corrections = variants * models * options.seeds
    for name in options.method_names:
        once = _correction(planner, contest, name)
        if options.tune:
            does = f"{counted(options.tune, 'trial')} on {counted(len(contest.tune_classes), 'class')}"
            trials = options.tune * len(contest.tune_classes)
            together = min(options.workers, len(options.method_names))
            yield Stage(f"{name}: search", does, trials * (once + evaluation), parallel=together)
        does = f"{counted(corrections, 'correction')}, measured {counted(options.evaluations, 'time')} each"
        minutes = corrections * (once + measured) + variants * models * attacked
        yield Stage(name, does, minutes, parallel=options.workers)


def _correction(planner: Planner, contest: Contest, name: str) -> float:
    """Return the minutes of a correction with a method's defaults: its preparation, and the steps that the rows pay for."""
    method, training = contest.method(name, {})
    step = work_of(method, training, planner.dataset, planner.forget, has_null=planner.diffusion.has_null).step
    rows = step.drawn + step.trained
    steps = max(1, int(contest.options.rows / rows)) if training.steps and rows else 0
    return sum(each.minutes for each in planner.unlearn(name, method, replace(training, steps=steps)))


def _attacks(planner: Planner, contest: Contest) -> float:
    """Return the minutes of the contest's attacks on one model."""
    names = contest.options.attack_names
    return sum(planner.attack(name, find_attack(name)(), Setting.samples, ["a model"]).minutes for name in names)
