"""The model that corrections start from: trained on real images and registered with the alias `base`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from pipelines import tracking
from pipelines.cli.options import product_name
from pipelines.cli.parameters import with_defaults
from pipelines.correction import recorded_data
from pipelines.engine.signals import is_follower_rank
from pipelines.registry import lineage, model_versions, orphans, registration
from safemax import metric_keys as keys
from safemax.data.batches import derive_seed
from safemax.data.dataset import Dataset
from safemax.diffusion.model import Diffusion
from safemax.diffusion.sampling import FAST, Sampler, sample
from safemax.errors import InputError
from safemax.evaluation.samples import SHOWN_PER_CLASS
from safemax.knobs import check, knob, without_added
from safemax.methods.finetune import Finetune
from safemax.reports.images_and_tables import grid
from safemax.reports.numbers import duration, memory_size
from safemax.storage import cache, checkpoint
from safemax.training import memory
from safemax.training.devices import accelerator_for
from safemax.training.hooks import Folders, Hooks, Log
from safemax.training.result import FitResult
from safemax.training.settings import Training
from safemax.training.trainer import Trainer


@dataclass(frozen=True)
class NetworkOptions:
    """The network to train."""

    architecture: str = knob(
        "auto",
        "small, medium, deep (4 levels), ddpm (the paper's, 35.75 M parameters), dit (a transformer), or the folder of a model "
        "to train further; auto is small up to 16 pixels, medium up to 39, deep from 40 to 64, and ddpm at 32 and above 64",
    )
    name: str = knob("auto", "registered model and experiment; auto is DATA-ddpm")
    null_drop: float = knob(0.1, "share of rows given the null label, which guidance needs", bounds=(0, 1))
    min_snr_gamma: float = knob(
        0.0,
        "gamma of min-SNR weighting of the steps t, 5 in its paper; 0 weights all equally",
        bounds=(0, 1e6),
        added=True,
    )

    def __post_init__(self) -> None:
        check(self)

    def create(self, dataset: Dataset, seed: int) -> Diffusion:
        """Return the untrained network for a data set's images and classes, or the model of a folder, whose weights go on."""
        if Path(self.architecture).is_dir():
            diffusion = Diffusion.load(self.architecture)
            lineage.agree_on_classes(diffusion, dataset)
            return diffusion
        torch.manual_seed(derive_seed(seed, 0))
        return Diffusion.create(self.architecture, dataset.image_shape, dataset.class_names)

    def name_for(self, dataset: Dataset) -> str:
        """Return the name of the registered model."""
        return product_name(self.name, dataset.name)


# Named settings of a base's training, by the names that users write.
PRESETS: dict[str, dict[str, Any]] = {
    "none": {},
    # what the literature agrees on for CIFAR-10 in minutes on one GPU; not measured here yet
    "gpu": {
        "steps": 8000, "batch_size": 512, "lr": 4e-4, "lr_end": 0.0, "warmup": 500, "ema": 0.9995, "ema_warmup": True,
        "min_snr_gamma": 5.0, "precision": "auto",
    },
}  # fmt: skip


@dataclass(frozen=True)
class PresetOptions:
    """Settings by one name."""

    preset: str = knob(
        "none",
        "named settings; gpu is a recipe for minutes on a GPU: 8000 steps of 512 rows, lr 4e-4 with warmup and a cosine to 0, "
        "min_snr_gamma 5, ema 0.9995 with ema_warmup, bf16; a value that you give wins over it, and minutes over its steps",
        choices=tuple(PRESETS),
    )

    def __post_init__(self) -> None:
        check(self)


BASE_TRAINING: dict[str, Any] = {"steps": 800, "lr": 1e-3, "ema": 0.99, "forget_share": 0.0}
BaseTraining = with_defaults(Training, **BASE_TRAINING)
START = (
    "model.start"  # parameter of a base: the folder of the model that was trained further, absent for an untrained one
)
_NAMED = 20  # classes that a note names
_SHOWN = (
    *("data.name", "model.null_drop", "model.min_snr_gamma"),
    *(f"train.{name}" for name in ("lr", "batch_size", "ema", "seed", "precision")),
)


def train_base(
    dataset: Dataset,
    network: NetworkOptions,
    training: Training,
    stop: Callable[[], bool],
    *,
    sampler: Sampler = FAST,
    shown: int = 2 * SHOWN_PER_CLASS,
    record: Mapping[str, Mapping[str, Any]] | None = None,
) -> str:
    """Train a base model in an MLflow run of its own, register it with the alias `base` and return its address.

    Args:
        dataset: the images.
        network: the network and its name.
        training: how long and how to train.
        stop: called before each step; True ends the run as KILLED, and the same command resumes it.
        sampler: draws the run's picture.
        shown: images of each class in it.
        record: the command line's parameters; corrections of the base take their data options from it.

    Raises:
        InputError: the name has a base of images of another shape.
    """
    diffusion = network.create(dataset, training.seed)
    registration.refuse_other_shape(network.name_for(dataset), diffusion)
    folder = _checkpoints(dataset, network, training, diffusion)
    params = _params(dataset, network, training)
    method = Finetune(null_drop=network.null_drop, min_snr_gamma=network.min_snr_gamma)
    Trainer(diffusion, method, dataset.train, (), training)  # refuses before the run what does not go together

    def fit(log: Log | None = None, origin: str = "") -> FitResult:
        hooks, folders = Hooks(log=log, should_stop=stop, title="pretrain"), Folders(folder, origin=origin)
        split, flip = dataset.train, dataset.natural
        return Trainer(diffusion, method, split, (), training, flip=flip, hooks=hooks, folders=folders).fit()

    if is_follower_rank():
        fit()
        return ""
    _announce(diffusion, training)
    tracking.setup(network.name_for(dataset))  # refuses before the first orphan is removed
    orphans.remove_orphans(network.name_for(dataset))
    name = f"pretrain-{dataset.name}-seed{training.seed}"
    tags = {"kind": "base", "unlearning.method": "none"}
    shown_params = (*_SHOWN, f"train.{training.length}")
    with tracking.run(name, experiment=network.name_for(dataset), params=params, tags=tags, shown=shown_params) as run:
        run.dataset(dataset, "training")
        run.parameters(record or {})
        run.start_journal(folder)
        result = fit(run.log, run.id)
        run.resumes(result.resumed_from)
        picture = run.picture(_picture(diffusion, dataset, sampler, shown), "samples/base")
        version = _register(
            diffusion, dataset, network.name_for(dataset), result.cost.metrics(), run, picture, params,
            recorded_data.tag_of(record or {}),
        )  # fmt: skip
    run.delete_journal()  # once the run has ended: until then the same command resumes, and finds the version
    checkpoint.clear(folder)
    return f"models:/{network.name_for(dataset)}/{version}"


def _params(dataset: Dataset, network: NetworkOptions, training: Training) -> dict[str, object]:
    params: dict[str, object] = {f"train.{key}": value for key, value in asdict(training).items()}
    params |= {"data.name": dataset.name, **dataset.params, "model.null_drop": network.null_drop}
    params |= {"model.min_snr_gamma": network.min_snr_gamma}
    if Path(network.architecture).is_dir():  # a gold model of this base would need the steps before these, too
        params |= {START: str(Path(network.architecture).absolute())}
    return params


def _announce(diffusion: Diffusion, training: Training) -> None:
    """Say what the training costs; InputError where the memory does not suffice."""
    print(_cost(diffusion, training))
    if need := memory.check(diffusion, training, accelerator_for(training).device):
        print(need)


def _picture(diffusion: Diffusion, dataset: Dataset, sampler: Sampler, shown: int) -> Image.Image:
    labels = torch.arange(dataset.num_classes).repeat_interleave(shown)
    return grid(sample(diffusion, labels, sampler.within(diffusion), seed=0, progress=True), shown)


def _checkpoints(dataset: Dataset, network: NetworkOptions, training: Training, start: Diffusion) -> Path:
    """Return where this training keeps its checkpoints: the same command finds them again."""
    facts = {
        "data": dataset.digest,
        "start": start.digest(),
        "network": {key: value for key, value in without_added(asdict(network), network).items() if key != "name"},
        "training": without_added(asdict(training), training),
        **dataset.flip_facts,
    }
    return cache.folder("checkpoints") / cache.key(facts)


def _cost(diffusion: Diffusion, training: Training) -> str:
    """Return what the training takes, in one line, said before it begins."""
    cost, (_, side, _) = diffusion.cost, diffusion.image_shape
    about = f"architecture {diffusion.architecture} for {side}x{side} images: {cost.parameters / 1e6:.2f} M parameters"
    if training.minutes:
        return f"{about}; {duration(training.minutes)} of steps of {training.batch_size} rows"
    minutes = 60 * cost.training_hours(training.steps, training.batch_size)
    steps = f"{training.steps} steps of {training.batch_size} rows"
    return f"{about}; {steps}, about {duration(minutes)} of an idle CPU by the operations counted"


def _register(
    diffusion: Diffusion,
    dataset: Dataset,
    name: str,
    cost: dict[str, float],
    run: tracking.Run,
    picture: str,
    params: dict[str, object],
    data_tag: dict[str, str],
) -> str:
    size = sum(p.numel() for p in diffusion.parameters()) / 1e6
    # By minutes, nobody chose how many steps it took.
    steps = "" if params["train.minutes"] else f"{params['train.steps']} steps in "
    note = (
        f"**Base model** of {dataset.name}: {dataset.num_classes} classes, {registration.shape_of(diffusion)} images, "
        f"architecture {diffusion.architecture} with {size:.2f} M parameters, trained for {steps}"
        f"{duration(cost[keys.RUNTIME_MINUTES])}, peak memory {memory_size(cost[keys.PEAK_MEMORY_GB])}.\n\n{picture}\n\n"
        f"Each row is a class: {', '.join(dataset.class_names[:_NAMED])}{', ...' if dataset.num_classes > _NAMED else ''}."
    )
    run.note(note)
    run.flush()  # a version exists only if its run has its numbers
    environment = tracking.environment()
    evidence = {
        "forgotten": [], "metrics": cost, "data_digest": dataset.digest, "model_digest": diffusion.digest(),
        "parameters": params, "environment": environment,
    }  # fmt: skip
    tags = {"kind": "base", "data.digest": dataset.digest, "git.commit": str(environment["commit"]), **data_tag}
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
