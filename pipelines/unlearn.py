"""Correct a model: unlearn classes with one method, measure what was forgotten, kept and paid, and register the version."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipelines import tracking
from pipelines.cli.options import DataOptions, ForgetOptions, ModelOptions
from pipelines.cli.parameters import for_method
from pipelines.cli.parser import choose, main, parse
from pipelines.cli.presets import with_preset
from pipelines.correction.base_model import find_base
from pipelines.correction.correct import correct
from pipelines.correction.correction import Correction
from pipelines.engine.signals import die_with_parent, stop_on_sigterm
from safemax.data.batches import parse_classes
from safemax.evaluation.measure import Evaluation
from safemax.judges.load import JudgeConfig
from safemax.knobs import check, knob
from safemax.methods import available
from safemax.training.trainer import Training


@dataclass(frozen=True)
class MethodOptions:
    """The method."""

    method: str = knob("safemax", "unlearning method; each has knobs of its own", choices=tuple(available()))
    preset: str = knob("none", "named knobs of the method, such as paper; a knob that you change keeps your value")
    previews: int = knob(4, "pictures of samples on the way; 0 draws none", bounds=(0, 1000))

    def __post_init__(self) -> None:
        check(self)


PARAMETERS: dict[str, type] = {
    "method": MethodOptions,
    "data": DataOptions,
    "forget": ForgetOptions,
    "model": ModelOptions,
    "training": Training,
    "evaluation": Evaluation,
    "judging": JudgeConfig,
}


def unlearn(argv: Sequence[str]) -> None:
    """Correct a model by the command line's parameters; --method chooses the method, and with it the knobs."""
    name, method_type = choose(argv, "method", {each: (each, cls) for each, cls in available().items()}, "safemax")
    chosen = parse("python -m pipelines.unlearn", __doc__ or "", for_method(PARAMETERS, name, method_type), argv)
    stop = stop_on_sigterm()
    die_with_parent()
    dataset = chosen["data"].load()
    product = chosen["model"].name_for(dataset)
    forget = parse_classes(chosen["forget"].forget, dataset.class_names)
    tracking.setup(product)
    source = chosen["model"].model
    correction = Correction(
        dataset, forget,
        find_base(product, chosen["data"].data) if source == "base" else source, product, name,
        with_preset(name, chosen[name], chosen["method"].preset), chosen["training"], chosen["evaluation"], chosen["judging"],
        chosen["method"].previews,
    )  # fmt: skip
    correct(correction, stop)


if __name__ == "__main__":
    main(unlearn)
