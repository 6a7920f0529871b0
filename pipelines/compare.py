"""Compare methods like for like: each one forgets each class, from the same base, measured by the same protocol.

    mlflow run . -e compare -P methods=safemax,selective_amnesia,salun -P classes=all -P seeds=3
    python -m pipelines.compare --methods=safemax,safemax@zero --overrides=safemax@zero.target=zero --workers=2

Each method, class and seed gets a child run, and so does each gold model, which never saw the class; children register nothing.
The same command resumes a comparison that was stopped: a child that finished is not run again, whichever comparison it was part
of, unless the code that made or measured it has changed.
Base samples, judges, gold models and priors that all classes share are made first, and their minutes are reported separately.
NAME@VARIANT is one more set of a method's knobs, which --overrides gives.
"""

from __future__ import annotations

if __name__ == "__main__":  # first: help and refusals need none of the imports below
    from pipelines.cli import console

    console.run("compare")

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from pipelines import tracking
from pipelines.cli.options import DataOptions, ModelOptions, PlanOptions
from pipelines.cli.parser import parse
from pipelines.comparison import report, variants
from pipelines.comparison.note import begun
from pipelines.comparison.plan import SHOWN, Comparison, ComparisonOptions, ablation_of
from pipelines.comparison.runner import ComparisonRunner
from pipelines.comparison.variants import MethodVariant
from pipelines.correction import concepts
from pipelines.correction.base_model import find_base
from pipelines.correction.recorded_data import parse_with_recorded
from pipelines.correction.retrained import GoldOptions
from pipelines.correction.source import ready
from pipelines.engine.signals import StopSignal, die_with_parent, is_follower_rank, stop_on_signals
from pipelines.planning.plan import Plan, Stage, alike, show
from pipelines.planning.stages import Planner
from pipelines.registry import model_versions
from safemax.data.class_names import parse_classes
from safemax.diffusion.model import Diffusion
from safemax.errors import InputError
from safemax.evaluation.enough_images import check_enough_images
from safemax.evaluation.protocol import Evaluation
from safemax.judges.config import JudgeConfig
from safemax.methods import validate_steps
from safemax.reports.numbers import counted

PARAMETERS: dict[str, type] = {
    "comparison": ComparisonOptions,
    "data": DataOptions,
    "model": ModelOptions,
    "evaluation": Evaluation,
    "judging": JudgeConfig,
    "plan": PlanOptions,
}


def compare(argv: Sequence[str]) -> None:
    """Compare by the command line's parameters."""
    chosen = parse_with_recorded(
        lambda settings: parse("python -m pipelines.compare", __doc__ or "", PARAMETERS, argv, settings)
    )
    options: ComparisonOptions = chosen["comparison"]
    compared = variants.read(options.methods, options.overrides, options.common)
    ablation = ablation_of(options)
    for each in (*compared, *(variant for _, _, variant in ablation)):
        validate_steps(each.method, each.training.steps)
    stop = stop_on_signals()
    die_with_parent()
    if is_follower_rank():
        raise InputError(
            "a comparison runs each child in one process; workers = 2 runs two at a time, without torchrun"
        )
    data = concepts.data_of(chosen)
    dataset = data.load()
    product, source = chosen["model"].name_for(dataset), chosen["model"].model
    source = find_base(product, chosen["data"].data) if source == "base" else model_versions.resolve_alias(source)
    prompts = concepts.prompts_of(chosen["model"], dataset.class_names)
    every = range(dataset.num_classes)
    classes = tuple(every) if options.classes == "all" else parse_classes(options.classes, dataset.class_names)
    for label in classes:
        check_enough_images(dataset, (label,))
    source, evaluation = ready(
        source, chosen["model"].schedule, dataset, chosen["evaluation"], prompts,
        forget=[(label,) for label in classes], trainings=[(each.method, each.training) for each in compared],
    )  # fmt: skip
    comparison = Comparison(
        options, data, dataset, classes, source, product, compared, ablation, evaluation,
        chosen["judging"], chosen.record(data=data.data),
    )  # fmt: skip
    if chosen["plan"].plan:
        show(_plan(comparison))
        return
    run(comparison, stop)


def _plan(comparison: Comparison) -> Plan:
    comparison.validate()
    options, dataset, evaluation = comparison.options, comparison.dataset, comparison.evaluation
    model, workers = Diffusion.load(comparison.base), options.workers
    planner = Planner.measured(model, dataset, comparison.classes[:1], comparison.variants[0].training)
    of_class = [replace(planner, forget=(label,)) for label in comparison.classes]
    stages = planner.judges(comparison.judging)
    stages += [alike([each.draw("base", evaluation, model) for each in of_class], "classes", workers)]
    gold = GoldOptions(gold_steps=options.gold_steps)
    golden = [each.gold_stages(gold, comparison.source, evaluation) for each in of_class if options.gold]
    for name in ("gold", "measure gold"):
        same = [stage for stages_of_class in golden for stage in stages_of_class if stage.name == name]
        stages += [alike(same, "classes", workers)] if same else []
    for variant in (*comparison.variants, *(each for _, _, each in comparison.ablation)):
        stages.append(_child(planner, comparison, variant))
    logs = (
        f"a run in the experiment {comparison.name} with tables and figures, and a run for each method, class and "
        "seed; no version. A child that finished before is not run again."
    )
    return Plan(comparison.title, stages, logs, planner.basis)


def _child(planner: Planner, comparison: Comparison, variant: MethodVariant) -> Stage:
    """Return all runs of a variant as one stage."""
    parts = [
        *planner.unlearn(variant.label, variant.method, variant.training),
        planner.draw("corrected", comparison.evaluation),
    ]
    options, times = comparison.options, len(comparison.classes) * comparison.options.seeds
    runs = f"{counted(len(comparison.classes), 'class')} x {counted(options.seeds, 'seed')}"
    does = f"{runs}: {parts[-2].does}; {parts[-1].does}"
    megabytes = times * parts[-1].megabytes
    return Stage(variant.label, does, times * sum(each.minutes for each in parts), megabytes, parallel=options.workers)


def _validate_output(output: str) -> None:
    """Raise InputError where the tables could not be written in the end."""
    try:
        if output != "none":
            Path(output).mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=output).close()
    except OSError as error:
        raise InputError(f"output = {output} cannot be written to: {error.strerror}") from error


def run(comparison: Comparison, stop: StopSignal) -> pd.DataFrame:
    """Compare in a run of its own; return one row per child.

    Raises:
        InputError: the model does not fit, or a child failed; the tables show the results of the others.
        Stopped: `stop` was raised; the same comparison resumes.
    """
    comparison.validate()
    _validate_output(comparison.options.output)
    tags = {"kind": "comparison", "comparison.methods": ",".join(each.label for each in comparison.variants)}
    with tracking.run(
        comparison.title, experiment=comparison.name, params=comparison.params(), tags=tags, shown=SHOWN,
        description=f"**Comparison under way**: {begun(comparison)}",
    ) as opened:  # fmt: skip
        opened.dataset(comparison.dataset, "training")
        opened.parameters(comparison.parameters)
        runner = ComparisonRunner(comparison, opened, stop)
        rows = runner.run_children()
        if len(rows):
            report.publish(comparison, opened, rows, runner.minutes, runner.failures)
        if runner.failures:
            raise InputError(
                f"failed jobs: {len(runner.failures)}, the first: {runner.failures[0]}; the same command runs them again"
            )
        print(f"{opened.url}  (after `make ui`)")
    return rows
