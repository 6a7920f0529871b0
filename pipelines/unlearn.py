"""Correct a model: unlearn classes with one method, measure the result against the base, and register it as a version.

    python -m pipelines.unlearn --forget=airplane --data=cifar10 --method=salun --mask_ratio=0.3
    python -m pipelines.unlearn --model=models:/digits-ddpm@champion --forget=7     (one more class)
    python -m pipelines.unlearn --method=salun --help                               (the parameters of another method)

The version carries the alias `candidate`, and its evidence: what was forgotten, what was retained, what it cost.
"""

from __future__ import annotations

if __name__ == "__main__":  # first: help and refusals need none of the imports below
    from pipelines.cli import console

    console.run("unlearn")

from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.cli.method_options import MethodOptions, parse_for_method
from pipelines.cli.options import DataOptions, ForgetOptions, ModelOptions, PlanOptions
from pipelines.cli.parser import text_of
from pipelines.correction import concepts
from pipelines.correction.base_model import find_base
from pipelines.correction.correct import correct
from pipelines.correction.correction import Correction
from pipelines.correction.recorded_data import parse_with_recorded
from pipelines.correction.source import ready
from pipelines.engine.signals import die_with_parent, stop_on_signals
from pipelines.planning.plan import Plan, show
from pipelines.planning.stages import Planner, logs_of
from pipelines.registry import model_versions
from safemax.data.class_names import parse_classes
from safemax.diffusion.model import Diffusion
from safemax.evaluation.enough_images import check_enough_images
from safemax.evaluation.protocol import Evaluation
from safemax.judges.config import JudgeConfig
from safemax.knobs import knob
from safemax.methods import validate_steps
from safemax.training.settings import Training


@dataclass(frozen=True)
class UnlearnOptions(MethodOptions):
    """The method."""

    previews: int = knob(4, "pictures of samples logged during training; 0 logs none", bounds=(0, 1000))


PARAMETERS: dict[str, type] = {
    "method": UnlearnOptions,
    "data": DataOptions,
    "forget": ForgetOptions,
    "model": ModelOptions,
    "training": Training,
    "evaluation": Evaluation,
    "judging": JudgeConfig,
    "plan": PlanOptions,
}


def unlearn(argv: Sequence[str]) -> None:
    """Correct a model as the command line says; --method chooses the method, and with it the parameters."""
    method_name = text_of(argv, "method") or "safemax"
    arguments = parse_with_recorded(
        lambda settings: parse_for_method("python -m pipelines.unlearn", __doc__ or "", PARAMETERS, argv, settings)[1]
    )
    validate_steps(arguments[method_name], arguments["training"].steps)
    stop = stop_on_signals()
    die_with_parent()
    data = concepts.data_of(arguments)
    dataset = data.load()
    name = arguments["model"].name_for(dataset)
    forget = parse_classes(concepts.forget_of(arguments), dataset.class_names)
    check_enough_images(dataset, forget)
    options = arguments["model"]
    address = find_base(name, arguments["data"].data) if options.model == "base" else options.model
    record = arguments.record(model=model_versions.resolve_alias(address), data=data.data)
    prompts = concepts.prompts_of(options, dataset.class_names)
    source = ready(
        address, options.schedule, dataset, arguments["evaluation"], prompts,
        forget=[forget], trainings=[(arguments[method_name], arguments["training"])],
    )  # fmt: skip
    correction = Correction(
        dataset, forget, source.address, name, method_name, arguments[method_name], arguments["training"],
        source.evaluation, arguments["judging"], arguments["method"].previews, record,
    )  # fmt: skip
    if arguments["plan"].plan:
        show(_plan(correction))
        return
    correct(correction, stop)


def _plan(correction: Correction) -> Plan:
    model = Diffusion.load(model_versions.resolve(correction.source))
    planner = Planner.measured(model, correction.dataset, correction.forget, correction.training)
    title = f"{correction.method_name}: {correction.name} forgets {', '.join(correction.class_names)}"
    return Plan(title, planner.correct(correction, model), logs_of(correction), planner.basis)
