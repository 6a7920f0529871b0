"""Train a class-conditional diffusion model on real images and register it as the base that corrections start from.

python -m pipelines.pretrain --data=cifar10 --preset=gpu --minutes=20
torchrun --nproc_per_node 4 -m pipelines.pretrain --data=cifar10     (several GPUs)
"""

from __future__ import annotations

if __name__ == "__main__":  # first: help and refusals need none of the imports below
    from pipelines.cli import console

    console.run("pretrain")

from collections.abc import Sequence

from pipelines.cli.options import DataOptions, PlanOptions
from pipelines.cli.parser import parse, text_of
from pipelines.correction.base_model import PRESETS, BaseTraining, NetworkOptions, PresetOptions, train_base
from pipelines.engine.signals import die_with_parent, stop_on_signals
from pipelines.planning.plan import Plan, show
from pipelines.planning.stages import Planner
from safemax.data.dataset import Dataset
from safemax.training.settings import Training

PARAMETERS: dict[str, type] = {
    "preset": PresetOptions,
    "data": DataOptions,
    "network": NetworkOptions,
    "training": BaseTraining,
    "plan": PlanOptions,
}


def pretrain(argv: Sequence[str]) -> None:
    """Train and register a base as the command line says."""
    preset = PRESETS.get(text_of(argv, "preset") or "none", {})  # another name is refused by parse
    arguments = parse("python -m pipelines.pretrain", __doc__ or "", PARAMETERS, argv, {"preset": preset})
    stop = stop_on_signals()
    die_with_parent()
    dataset = arguments["data"].load()
    if arguments["plan"].plan:
        show(_plan(dataset, arguments["network"], arguments["training"]))
        return
    address = train_base(dataset, arguments["network"], arguments["training"], stop, record=arguments.record())
    if address:
        print(f"registered {address} with the alias base")


def _plan(dataset: Dataset, network: NetworkOptions, training: Training) -> Plan:
    planner = Planner.measured(network.create(dataset, training.seed), dataset, (), training)
    name = network.name_for(dataset)
    logs = f"a run in the experiment {name} with losses and samples; the next version of {name}, alias base."
    return Plan(f"pretrain {name}", [planner.pretrain(training), planner.register("base")], logs, planner.basis)
