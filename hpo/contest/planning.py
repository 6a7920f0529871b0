"""What a contest would do, and how long that takes on this machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from hpo.contest.config import Contest
from hpo.contest.files import ResultFiles
from hpo.contest.work import Workshop
from pipelines.planning.plan import Plan, Stage, alike
from pipelines.planning.stages import Planner
from pipelines.planning.work import work_of
from safemax.attacks import find as find_attack
from safemax.attacks.base import Setting
from safemax.reports.contest_tables import BASE, GOLD
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
    files = ResultFiles(contest)
    waiting = files.waiting()
    bases = [
        planner.pretrain(training, reused=workshop.folder(BASE, each, ()).exists()) for each in files.bases(waiting)
    ]
    gold = [
        replace(planner.gold(training), reused=workshop.folder(GOLD, base, (label,)).exists())
        for name, base in waiting
        for label in contest.classes
        if name == GOLD
    ]
    stages = [*planner.judges(contest.judging)] if waiting else []
    stages += [alike(bases, "bases", options.workers)] if bases else []
    stages += [alike(gold, "gold models", options.workers)] if gold else []
    stages += _entries(planner, contest, files, waiting)
    logs = f"a run in the experiment {product} with the report; result files in the folder {options.files}; no version."
    basis = (
        f"{planner.basis} What the folder's files hold is left out; what an earlier contest left in the cache alone is not done "
        "again, but counted here."
    )
    title = f"contest of {counted(len(options.method_names), 'method')} on {workshop.dataset.name}"
    return Plan(title, stages, logs, basis)


def _entries(
    planner: Planner, contest: Contest, files: ResultFiles, waiting: Sequence[tuple[str, int]]
) -> Iterator[Stage]:
    """Yield the stages of base and gold and of every method, over the bases on which no file holds them."""
    options, classes = contest.options, len(contest.classes)
    counts = Counter(name for name, _ in waiting)
    evaluation = planner.draw("corrected", contest.evaluation).minutes
    measured = options.evaluations * evaluation
    attacked = _attacks(planner, contest)
    models = (counts[BASE] + counts[GOLD]) * classes
    does = f"draw and measure {counted(models, 'model')}"
    yield Stage("base and gold", does, models * (measured + attacked), reused=not models, parallel=options.workers)
    variants = 2 if options.tune else 1
    for name in options.method_names:
        once = _correction(planner, contest, name)
        if counts[name] and not files.is_searched(name):
            does = f"{counted(options.tune, 'trial')} on {counted(len(contest.tune_classes), 'class')}"
            trials = options.tune * len(contest.tune_classes)
            together = min(options.workers, len(options.method_names))
            yield Stage(f"{name}: search", does, trials * (once + evaluation), parallel=together)
        models = variants * counts[name] * classes
        corrections = models * options.seeds
        does = f"{counted(corrections, 'correction')}, measured {counted(options.evaluations, 'time')} each"
        minutes = corrections * (once + measured) + models * attacked
        yield Stage(name, does, minutes, reused=not models, parallel=options.workers)


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
