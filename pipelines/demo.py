"""The demo: train a small diffusion model on real images, make it forget a class with SAFEMax, and measure the result.

    python -m pipelines.demo                                              (real handwritten digits; it forgets 0)
    python -m pipelines.demo --data=cifar10 --forget=airplane --base_steps=20000

The base model and the judges are trained once; later runs reuse them.
"""

from __future__ import annotations

if __name__ == "__main__":  # first: help and refusals need none of the imports below
    from pipelines.cli import console

    console.run("demo")

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.cli.options import DataOptions, ForgetOptions, PlanOptions
from pipelines.cli.parameters import with_defaults
from pipelines.cli.parser import Arguments, parse
from pipelines.correction.base_model import BaseTraining, NetworkOptions, train_base
from pipelines.correction.correct import correct
from pipelines.correction.correction import Correction
from pipelines.correction.source import fitting
from pipelines.engine.signals import die_with_parent, is_follower_rank, stop_on_signals
from pipelines.planning.plan import Plan, show
from pipelines.planning.stages import Planner, logs_of
from pipelines.registry import model_versions
from pipelines.registry.lineage import agree_on_classes
from safemax.data.class_names import parse_classes
from safemax.data.dataset import Dataset
from safemax.diffusion.model import Diffusion
from safemax.errors import InputError, note
from safemax.evaluation.enough_images import check_enough_images
from safemax.evaluation.protocol import Evaluation
from safemax.judges.config import JudgeConfig
from safemax.knobs import check, knob
from safemax.methods import validate_steps
from safemax.methods.safemax import SAFEMax
from safemax.reports.numbers import duration
from safemax.training.settings import Training


@dataclass(frozen=True)
class DemoOptions:
    """The base model, trained where none is registered yet."""

    name: str = knob("auto", "registered model and experiment; auto is DATA-ddpm")
    base_steps: int = knob(800, "training steps of the base", bounds=(0, 10_000_000))
    base_batch_size: int = knob(128, "rows of a training step of the base", bounds=(1, 1_000_000))
    previews: int = knob(4, "pictures of samples logged during training; 0 logs none", bounds=(0, 1000))

    def __post_init__(self) -> None:
        check(self)


PARAMETERS: dict[str, type] = {
    "data": DataOptions,
    "forget": ForgetOptions,
    "base": DemoOptions,
    # 300 steps at a constant rate end on a noisy iterate; benchmarks/digits.py has both.
    "training": with_defaults(Training, steps=300, ema=0.98),
    "safemax": SAFEMax,
    "evaluation": with_defaults(Evaluation, retain_samples=50),
    "judging": JudgeConfig,
    "plan": PlanOptions,
}


def demo(argv: Sequence[str]) -> None:
    """Find or train the base, then correct it."""
    arguments = parse("python -m pipelines.demo", __doc__ or "", PARAMETERS, argv)
    stop = stop_on_signals()
    die_with_parent()
    if is_follower_rank():
        raise InputError("the demo runs in one process; under torchrun use pipelines.pretrain and pipelines.unlearn")
    dataset, base, training = arguments["data"].load(), arguments["base"], arguments["training"]
    network = NetworkOptions(name=base.name)
    name = network.name_for(dataset)
    validate_steps(arguments["safemax"], training.steps)
    forget = parse_classes(arguments["forget"].forget, dataset.class_names)
    check_enough_images(dataset, forget)
    pretraining = BaseTraining(
        steps=base.base_steps, batch_size=base.base_batch_size, seed=training.seed,
        precision=training.precision, device=training.device,
    )  # fmt: skip
    found = _base(name, pretraining)
    untrained = found or network.create(dataset, pretraining.seed)
    evaluation = _evaluation(arguments, untrained, dataset, forget)
    correction = Correction(
        dataset, forget, "base", name, "safemax", arguments["safemax"], training, evaluation, arguments["judging"],
        base.previews, arguments.record(),
    )  # fmt: skip
    plan = _plan(correction, found, untrained, pretraining)
    if arguments["plan"].plan:
        show(plan)
        return
    print(plan.text(), flush=True)

    def find_or_train() -> str:
        return model_versions.find(name, "base") or train_base(
            dataset,
            network,
            pretraining,
            stop,
            sampler=evaluation.main_sampler,
            shown=min(10, evaluation.counts[1]),
            record=arguments.record(),
        )

    correct(correction, stop, find_or_train, planned=plan.minutes)


def _base(name: str, asked: Training) -> Diffusion | None:
    """Return the registered base, None where there is none; a note says where it was trained otherwise than asked."""
    address = model_versions.find(name, "base")
    if address is None:
        return None
    trained = _extent(model_versions.evidence(address).get("parameters", {}))
    if trained != f"{asked.steps} steps of {asked.batch_size} rows":
        note(
            f"{address} is corrected as it is: it was trained for {trained}, not for {asked.steps} of {asked.batch_size}; another "
            "name, or another version with the alias base, changes that"
        )
    return Diffusion.load(model_versions.resolve(address))


def _extent(params: Mapping[str, Any]) -> str:
    """Return how long a base was trained, by what its version records."""
    minutes = params.get("train.minutes")  # then the steps are those that it might have taken
    length = f"{duration(minutes)} in steps" if minutes else f"{params.get('train.steps', 'unknown')} steps"
    return f"{length} of {params.get('train.batch_size', 'unknown')} rows"


def _evaluation(arguments: Arguments, diffusion: Diffusion, dataset: Dataset, forget: tuple[int, ...]) -> Evaluation:
    """Return how the model is measured; InputError where it does not fit the data, the method or the samples."""
    agree_on_classes(diffusion, dataset)
    trainings = [(arguments["safemax"], arguments["training"])]
    return fitting(diffusion, dataset, arguments["evaluation"], [forget], trainings)


def _plan(correction: Correction, base: Diffusion | None, untrained: Diffusion, pretraining: Training) -> Plan:
    planner = Planner.measured(untrained, correction.dataset, correction.forget, correction.training)
    stages = [planner.pretrain(pretraining, reused=base is not None), *planner.correct(correction, base)]
    title = f"demo: {correction.name} forgets {', '.join(correction.class_names)}"
    return Plan(title, stages, logs_of(correction), planner.basis)
