"""The model that corrections start from: trained on real images and registered with the alias `base`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from pipelines import tracking
from pipelines.cli.options import product_name
from pipelines.cli.parameters import with_defaults
from pipelines.engine.signals import is_follower_rank
from pipelines.registry import model_versions, orphans, registration
from safemax import metric_keys as keys
from safemax.data.batches import derive_seed
from safemax.data.dataset import Dataset
from safemax.diffusion.model import Diffusion
from safemax.diffusion.sampling import FAST, Sampler, sample
from safemax.errors import InputError
from safemax.evaluation.samples import SHOWN_PER_CLASS
from safemax.knobs import check, knob
from safemax.methods.finetune import Finetune
from safemax.reports.images_and_tables import grid
from safemax.storage import cache, checkpoint
from safemax.training.hooks import Folders, Hooks
from safemax.training.settings import Training
from safemax.training.trainer import Trainer


@dataclass(frozen=True)
class NetworkOptions:
    """The network to train."""

    architecture: str = knob("auto", "small (8x8), ddpm (the paper's, 32x32); auto fits the image size")
    name: str = knob("auto", "registered model and experiment; auto is DATA-ddpm")
    null_drop: float = knob(0.1, "share of rows given the null label, which guidance needs", bounds=(0, 1))

    def __post_init__(self) -> None:
        check(self)

    def create(self, dataset: Dataset, seed: int) -> Diffusion:
        """Return the untrained network for a data set's images and classes."""
        architecture = self.architecture
        if architecture == "auto":
            architecture = "small" if dataset.image_shape[-1] <= 16 else "ddpm"
        torch.manual_seed(derive_seed(seed, 0))
        return Diffusion.create(architecture, dataset.image_shape, dataset.class_names)

    def name_for(self, dataset: Dataset) -> str:
        """Return the name of the registered model."""
        return product_name(self.name, dataset.name)


BASE_TRAINING: dict[str, Any] = {"steps": 800, "lr": 1e-3, "ema": 0.99, "forget_share": 0.0}
BaseTraining = with_defaults(Training, **BASE_TRAINING)


def train_base(
    dataset: Dataset,
    network: NetworkOptions,
    training: Training,
    stop: Callable[[], bool],
    *,
    sampler: Sampler = FAST,
    shown: int = 2 * SHOWN_PER_CLASS,
) -> str:
    """Train a base model in an MLflow run of its own, register it with the alias `base` and return its address.

    Args:
        dataset: the images.
        network: the network and its name.
        training: how long and how to train.
        stop: called before each step; True ends the run as KILLED, and the same command resumes it.
        sampler: draws the run's picture.
        shown: images of each class in it.
    """
    diffusion = network.create(dataset, training.seed)
    facts = {
        "data": dataset.digest,
        "start": diffusion.digest(),
        "network": {key: value for key, value in asdict(network).items() if key != "name"},
        "training": asdict(training),
        **dataset.flip_facts,
    }
    folder = cache.folder("checkpoints") / cache.key(facts)
    params: dict[str, object] = {f"train.{key}": value for key, value in asdict(training).items()}
    params |= {"data.name": dataset.name, **dataset.params, "model.null_drop": network.null_drop}
    if is_follower_rank():
        Trainer(
            diffusion, Finetune(null_drop=network.null_drop), dataset.train, (), training,
            flip=dataset.natural, hooks=Hooks(should_stop=stop), folders=Folders(folder),
        ).fit()  # fmt: skip
        return ""
    orphans.remove_orphans(network.name_for(dataset))
    name = f"pretrain-{dataset.name}-seed{training.seed}"
    with tracking.run(name, experiment=network.name_for(dataset), params=params, tags={"kind": "base"}) as run:
        run.dataset(dataset, "training")
        run.start_journal(folder)
        result = Trainer(
            diffusion, Finetune(null_drop=network.null_drop), dataset.train, (), training, flip=dataset.natural,
            hooks=Hooks(log=run.log, should_stop=stop), folders=Folders(folder, origin=run.id),
        ).fit()  # fmt: skip
        if result.resumed_from:
            run.tag("resumed_from", result.resumed_from)
        run.log(result.cost.metrics())
        labels = torch.arange(dataset.num_classes).repeat_interleave(shown)
        picture = run.picture(grid(sample(diffusion, labels, sampler, seed=0, progress=True), shown), "samples/base")
        version = _register(diffusion, dataset, network.name_for(dataset), result.cost.metrics(), run, picture, params)
        run.delete_journal()
    checkpoint.clear(folder)
    return f"models:/{network.name_for(dataset)}/{version}"


def _register(
    diffusion: Diffusion,
    dataset: Dataset,
    name: str,
    cost: dict[str, float],
    run: tracking.Run,
    picture: str,
    params: dict[str, object],
) -> str:
    size = sum(p.numel() for p in diffusion.parameters()) / 1e6
    note = (
        f"Base model of {dataset.name}: {size:.2f} M parameters, {cost[keys.RUNTIME_MINUTES]:.2f} minutes.\n\n{picture}"
    )
    run.note(note)
    run.flush()  # a version exists only if its run has its numbers
    environment = tracking.environment()
    evidence = {
        "forgotten": [], "metrics": cost, "data_digest": dataset.digest, "model_digest": diffusion.digest(),
        "parameters": params, "environment": environment,
    }  # fmt: skip
    tags = {"kind": "base", "data.digest": dataset.digest, "git.commit": str(environment["commit"])}
    return registration.register(
        diffusion, name, run_id=run.id, evidence=evidence, tags=tags, description=note, alias="base"
    )


def find_base(name: str, data: str) -> str:
    """Return the address of a registered model's base.

    Args:
        name: the registered model.
        data: the data option, for the command in the error's message.

    Raises:
        InputError: no version has the alias base; the message has the command that makes one.
    """
    address = model_versions.find(name, "base")
    if address is None:
        raise InputError(
            f"model = base: {name} has no version with the alias base; `mlflow run . -e pretrain -P data={data}` makes one"
        )
    return address
