"""Measure a model without changing it, and write the page that a reviewer reads before a promotion.

What it still knows of some classes, how well it draws the others, what attacks recovered (`-e attack`, run before), its cost and
its lineage, compared with the base; evidence/report.html in the run holds all of it and opens without a network.
"""

from __future__ import annotations

if __name__ == "__main__":  # first: help and refusals need none of the imports below
    from pipelines.cli import console

    console.run("evaluate")

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipelines.cli.options import DataOptions, PlanOptions
from pipelines.cli.parameters import with_defaults
from pipelines.cli.parser import Arguments, parse
from pipelines.correction import retrained
from pipelines.correction.recorded_data import parse_with_recorded
from pipelines.correction.retrained import GoldOptions
from pipelines.engine.options import WorkerOptions
from pipelines.engine.shared_draws import follow_draws, shared_draws
from pipelines.engine.signals import StopSignal, die_with_parent, is_follower_rank, stop_on_signals
from pipelines.examination.attack_run import AttackRun
from pipelines.examination.evaluation import Evaluator
from pipelines.examination.evaluation_report import publish
from pipelines.examination.fan_out import Folders, Prepared, each_named, measurements, prepare
from pipelines.examination.subject import Subject
from pipelines.planning.plan import Plan, show
from pipelines.planning.stages import Planner
from pipelines.registry import lineage, model_versions
from safemax.evaluation.enough_images import check_enough_samples
from safemax.evaluation.panel_classes import AUTO
from safemax.evaluation.protocol import Evaluation
from safemax.judges.config import JudgeConfig
from safemax.knobs import check, knob
from safemax.training.settings import Training


@dataclass(frozen=True)
class EvaluateOptions:
    """The model to measure."""

    model: str = knob(
        "models:/digits-ddpm@candidate",
        "models:/NAME@ALIAS, a folder, or a Hugging Face id; several, separated by commas, get a run each",
    )
    forget: str = knob("auto", "classes to look for, separated by commas; auto is all that the version has forgotten")
    beside: str = knob(
        "auto",
        "a second model to compare it with, by the same samplers, seeds and counts: auto (the version's base), none, "
        "a folder or an address",
    )
    attack_run: str = knob(
        "auto", "id of a run that attacked this model; auto (the newest one on each version) or none"
    )
    name: str = knob("auto", "experiment; auto is DATA-ddpm")

    def __post_init__(self) -> None:
        check(self)


PARAMETERS: dict[str, type] = {
    "model": EvaluateOptions,
    "gold": with_defaults(GoldOptions, gold="kept"),
    "data": DataOptions,
    "evaluation": Evaluation,
    "judging": JudgeConfig,
    "workers": WorkerOptions,
    "plan": PlanOptions,
}


def evaluate(argv: Sequence[str]) -> None:
    """Measure a model by the command line's parameters."""
    chosen = parse_with_recorded(
        lambda settings: parse("python -m pipelines.evaluate", __doc__ or "", PARAMETERS, argv, settings)
    )
    stop = stop_on_signals()
    die_with_parent()
    if is_follower_rank():
        follow_draws(stop, {retrained.JOB: retrained.train_along(chosen["data"].load, stop)})
        return
    options = chosen["model"]
    subjects = Subject.every(options, options.beside, chosen["data"])
    evaluations = [_fitted(chosen["evaluation"], each) for each in subjects]
    for each in subjects:
        chosen["gold"].validate(each.base, each.dataset)
    if chosen["plan"].plan:
        for each, evaluation in zip(subjects, evaluations, strict=True):
            show(_plan(each, evaluation, chosen["judging"], chosen["gold"]))
        return
    attack_runs = [AttackRun.find(each.address, options.attack_run) for each in subjects]
    prepared = _prepare(subjects, evaluations, chosen, stop)
    with shared_draws():
        each_named(
            [each.address for each in subjects],
            lambda n: _evaluate(subjects[n], evaluations[n], attack_runs[n], prepared[n], chosen, stop),
        )


def _prepare(
    subjects: Sequence[Subject], evaluations: Sequence[Evaluation], chosen: Arguments, stop: StopSignal
) -> list[Prepared]:
    """Do on workers what takes long, where there are several."""
    options: WorkerOptions = chosen["workers"]
    if options.in_process:
        return [Prepared() for _ in subjects]
    models = []
    for each, evaluation in zip(subjects, evaluations, strict=True):
        folders = Folders.of(each, chosen["gold"], options, like_base=False)
        models.append((each, measurements(each, evaluation, folders)))
    return prepare(options, chosen["data"], chosen["judging"], models, stop)


def _evaluate(
    subject: Subject, evaluation: Evaluation, attack_run: AttackRun, prepared: Prepared, chosen: Arguments,
    stop: StopSignal,
) -> None:  # fmt: skip
    """Measure one model in a run of its own."""
    diffusion = lineage.load(subject.address, subject.dataset)
    params = {"model.beside": subject.base, "model.gold": chosen["gold"].gold, "attack.run": attack_run.id}
    params |= {f"eval.{key}": value for key, value in evaluation.describe().items()}
    shown = ("model.beside", "model.gold", "attack.run", "eval.protocol", "eval.seed")
    with subject.run("evaluation", f"evaluate-{subject.title}", params, shown) as run:
        run.parameters(chosen.record(model=subject.address))
        prepared.note(run)
        prepared.raise_failure()
        evaluator = Evaluator.load(subject, diffusion, evaluation, chosen["judging"], chosen["gold"], stop)
        prepared.refuse_other_judges(evaluator.judges)
        evaluator = replace(evaluator, known=prepared.metrics())
        with stop.interruptible():
            started = time.perf_counter()
            before, after = evaluator.measure_base(), evaluator.measure(subject.address, diffusion)
            seconds = time.perf_counter() - started + sum(prepared.seconds().values())
            publish(evaluator, before, after, attack_run, seconds / 60, run)


def _fitted(wanted: Evaluation, subject: Subject) -> Evaluation:
    """Return how a model is measured; InputError where its samplers or the numbers of samples do not fit."""
    diffusion = lineage.load(subject.address, subject.dataset)
    evaluation = as_recorded(wanted, subject.address).fitted(diffusion, subject.classes.forget)
    check_enough_samples(evaluation, subject.classes, subject.dataset.class_names)
    return evaluation


def as_recorded(evaluation: Evaluation, address: str) -> Evaluation:
    """Return an evaluation that asks, by default, for the retained classes that a version was measured with."""
    if evaluation.retain_classes != AUTO or not model_versions.is_registry_address(address):
        return evaluation
    recorded = model_versions.evidence(address).get("parameters", {}).get("eval.retain_classes", AUTO)
    return replace(evaluation, retain_classes=str(recorded))


def _plan(subject: Subject, evaluation: Evaluation, judging: JudgeConfig, gold: GoldOptions) -> Plan:
    diffusion = lineage.load(subject.address, subject.dataset)
    planner = Planner.measured(diffusion, subject.dataset, subject.classes.forget, Training())
    base = lineage.load(subject.base, subject.dataset) if subject.base else None
    stages = planner.gold_stages(gold, subject.base, evaluation)
    stages += [*planner.judges(judging), *([planner.draw("base", evaluation, base)] if base else [])]
    stages.append(planner.draw("model", evaluation, diffusion))
    logs = f"a run in the experiment {subject.experiment}, with metrics, pictures and report.html; no version."
    return Plan(f"evaluate {subject.title}", stages, logs, planner.basis)
