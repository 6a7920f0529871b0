"""The gold model: trained as the base was, on everything but the forgotten classes; made once, then cached.

Inside `shared_draws`, all processes train it together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipelines import tracking
from pipelines.correction.base_model import BASE_TRAINING, START
from pipelines.engine.signals import StopSignal
from pipelines.registry import lineage, model_versions
from safemax.data.dataset import Dataset
from safemax.diffusion import team
from safemax.diffusion.model import Diffusion
from safemax.diffusion.team import Job, Team
from safemax.errors import InputError, note
from safemax.knobs import check, knob, knobs, without_added
from safemax.methods import knobs_of
from safemax.methods.retrain import Retrain
from safemax.storage import atomic, cache, checkpoint
from safemax.training.hooks import Folders, Hooks
from safemax.training.settings import Training
from safemax.training.trainer import Trainer

# Fields of a training that depend on the machine and do not name another gold model.
MACHINE = ("device", "precision", "compile", "channels_last", "checkpoint_every", "accumulate")
JOB = "gold"  # that all processes train
# How a base is trained whose record does not say so.
USUAL = {"null_drop": 0.1, "min_snr_gamma": 0.0}


class TrainedFurther(InputError):
    """A base began from another model, so that its record has too few steps for a gold model."""


@dataclass(frozen=True)
class GoldOptions:
    """The retrained model, which an attack's success is compared with: attacks succeed on it too, to a degree."""

    gold: str = knob(
        "train",
        "model that never saw the classes: train (once, as the base was, then kept), kept (if there is one), none, "
        "a folder or models:/NAME/VERSION",
    )
    gold_steps: int = knob(0, "steps to train it; 0 takes as many as the base was trained", bounds=(0, 10_000_000))

    def __post_init__(self) -> None:
        check(self)

    def validate(self, base: str | None, dataset: Dataset) -> None:
        """Refuse before any work what `find` would refuse, and note where nothing says how the base was trained.

        Raises:
            InputError: no such model, or the base is one that was trained further.
        """
        if self.gold == "train":
            check_recipe(base, self.gold_steps)
        elif self.gold not in ("none", "kept"):
            lineage.load(model_versions.resolve_alias(self.gold), dataset)

    def find(
        self, template: Diffusion, base: str | None, dataset: Dataset, forget: tuple[int, ...], stop: Callable[[], bool]
    ) -> Diffusion | None:
        """Return the gold model, trained if need be; None where the option is none, or kept and there is none yet.

        Args:
            template: a model with the network to train; it is not changed.
            base: address of the base, whose evidence says how it was trained.
            dataset: the images.
            forget: labels that the gold model must not see.
            stop: called before each step; True ends the training with a checkpoint and Stopped.
        """
        if self.gold not in ("none", "train", "kept"):
            return lineage.load(model_versions.resolve_alias(self.gold), dataset)
        recipe = self._usable(template, base, dataset, forget)
        return None if recipe is None else recipe.make(template, dataset, forget, stop)

    def place(self, template: Diffusion, base: str | None, dataset: Dataset, forget: tuple[int, ...]) -> Path | None:
        """Return the folder of the gold model, which is yet to be trained where it does not exist; as `find` otherwise."""
        if self.gold not in ("none", "train", "kept"):
            return model_versions.resolve(model_versions.resolve_alias(self.gold))
        recipe = self._usable(template, base, dataset, forget)
        return None if recipe is None else recipe.folder(template, dataset, forget)

    def _usable(
        self, template: Diffusion, base: str | None, dataset: Dataset, forget: tuple[int, ...]
    ) -> GoldRecipe | None:
        """Return how the gold model is trained, None for none: it is not wanted, or it is to be a kept one and there is none."""
        if self.gold == "none":
            return None
        try:
            recipe = self.recipe(base)
        except TrainedFurther:
            if self.gold == "kept":
                return None
            raise
        return recipe if self.gold == "train" or recipe.folder(template, dataset, forget).exists() else None

    def recipe(self, base: str | None) -> GoldRecipe:
        """Return how a gold model is trained, by the address of the base."""
        return recipe_of(base, self.gold_steps)

    def untrained(
        self, template: Diffusion, base: str | None, dataset: Dataset, forget: tuple[int, ...]
    ) -> Training | None:
        """Return the settings that `find` would train by, None where it would train nothing; arguments as of `find`."""
        if self.gold != "train":
            return None
        recipe = recipe_of(base, self.gold_steps)
        return None if recipe.folder(template, dataset, forget).exists() else recipe.training


@dataclass(frozen=True)
class GoldRecipe:
    """How a gold model is trained: as the base was.

    Args:
        training: the settings.
        null_drop: label drop, for a model with a null label.
        min_snr_gamma: of the weighting of steps.
    """

    training: Training
    null_drop: float
    min_snr_gamma: float

    def make(
        self, template: Diffusion, dataset: Dataset, forget: tuple[int, ...], stop: Callable[[], bool]
    ) -> Diffusion:
        """Return the gold model, trained if it is not cached; the arguments are those of `GoldOptions.find`."""
        folder = self.folder(template, dataset, forget)
        if not cache.has(folder):
            _train(template, self._method(template), dataset, forget, self.training, folder, stop)
        return lineage.load(str(folder), dataset)

    def folder(self, template: Diffusion, dataset: Dataset, forget: tuple[int, ...]) -> Path:
        """Return where the gold model is cached."""
        return cache.folder("gold") / cache.key(
            _facts(template, dataset, forget, self.training, self._method(template))
        )

    def _method(self, template: Diffusion) -> Retrain:
        return Retrain(null_drop=self.null_drop if template.has_null else 0.0, min_snr_gamma=self.min_snr_gamma)


def recipe_of(base: str | None, steps: int) -> GoldRecipe:
    """Return the recipe of the run that made a base, or the defaults without such a run.

    Args:
        base: address of the base.
        steps: to train the gold model; 0 takes as many as the base was trained.

    Raises:
        TrainedFurther: the base began from another model, and `steps` does not say how many steps both took.
        InputError: the record of the base's training is damaged.
    """
    training, null_drop, min_snr_gamma = _as_base(base, steps)
    if steps:
        training = replace(training, steps=steps, minutes=0.0)
    return GoldRecipe(training, null_drop, min_snr_gamma)


def check_recipe(base: str | None, steps: int) -> None:
    """Raise InputError as `recipe_of`, and note where nothing says how the base was trained; arguments as of `recipe_of`."""
    recipe = recipe_of(base, steps)
    if not steps and (base is None or not _trained(_recorded(base))):
        note(
            f"nothing records how {base or 'the model'} was trained: its gold model is trained with the defaults, "
            f"{recipe.training.steps} steps; gold_steps=N trains it N steps, gold=none does without it"
        )


def _as_base(base: str | None, steps: int = 0) -> tuple[Training, float, float]:
    """Return training, label drop and gamma of min-SNR that the base was made with, or the defaults where nothing says so."""
    default = Training(**BASE_TRAINING)
    if base is None or not model_versions.is_registry_address(base):
        return default, USUAL["null_drop"], USUAL["min_snr_gamma"]
    params = _recorded(base)
    names = _trained(params)
    if START in params and not steps:
        raise TrainedFurther(
            f"{base} was trained {params.get('train.steps', 'some')} steps further from {params[START]}, whose own training is not "
            "recorded: gold_steps=N trains the gold model N steps, for both trainings together; gold=none does without a gold "
            "model, gold=FOLDER takes another"
        )
    try:
        recorded: dict[str, Any] = {name: _value(params[f"train.{name}"], getattr(default, name)) for name in names}
        null_drop, gamma = (_value(params.get(f"model.{name}", str(usual)), 0.0) for name, usual in USUAL.items())
        Retrain(null_drop=null_drop, min_snr_gamma=gamma)
        if params.get("train.precision") in ("bf16", "auto"):  # on a GPU as the base; a CPU's gold models are in fp32
            recorded["precision"] = "auto"
        return replace(default, **recorded), null_drop, gamma
    except (KeyError, ValueError) as error:
        raise InputError(
            f"run {model_versions.version_of(base).run_id} does not record how {base} was trained ({error}); gold=none goes "
            "without a gold model, gold=FOLDER takes another"
        ) from error


def _trained(params: Mapping[str, str]) -> list[str]:
    """Return the fields of a training that parameters record."""
    return [each.name for each in fields(Training) if f"train.{each.name}" in params and each.name not in MACHINE]


def _recorded(base: str) -> Mapping[str, str]:
    """Return the parameters that a base was trained with, as text: of its run, or where that shows a few only, its evidence.

    {} for a model that is not a version.
    """
    if not model_versions.is_registry_address(base):
        return {}
    run_id = model_versions.version_of(base).run_id
    run = tracking.find_run(run_id) if run_id else None
    params: Mapping[str, str] = run.data.params if run else {}
    if all(f"train.{each.name}" in params for each in fields(Training) if each.name not in MACHINE):
        return params  # a run of a version up to 0.1
    stated = model_versions.evidence(base).get("parameters")
    return {key: str(value) for key, value in stated.items()} if isinstance(stated, dict) else params


def _value(text: str, default: Any) -> Any:
    """Return a recorded value in the type of its default; KeyError or ValueError where it has another."""
    if isinstance(default, bool):
        return {"True": True, "False": False}[text]
    return type(default)(text)


def _facts(
    template: Diffusion, dataset: Dataset, forget: tuple[int, ...], training: Training, method: Retrain
) -> dict[str, Any]:
    default = asdict(Training())  # defaults are left out, so that a knob added later does not rename cached models
    decisive = {
        name: value for name, value in asdict(training).items() if name not in MACHINE and value != default[name]
    }
    network = {name: value for name, value in dict(template.denoiser.config).items() if not name.startswith("_")}
    schedule = template.alpha_bar.tolist()
    return {"network": network, "schedule": schedule, **template.surroundings(), "data": dataset.digest, "forget": forget,
            "training": decisive, "method": without_added(knobs_of(method), method), **dataset.flip_facts}  # fmt: skip


def _train(
    template: Diffusion,
    method: Retrain,
    dataset: Dataset,
    forget: tuple[int, ...],
    training: Training,
    folder: Path,
    stop: Callable[[], bool],
) -> None:
    gold, crew = template.untrained(), team.current()
    checkpoints = cache.folder("checkpoints") / f"gold-{folder.name}"
    trainer = Trainer(
        gold, method, dataset.train, forget, training,
        flip=dataset.natural, hooks=Hooks(should_stop=stop, title="gold"), folders=Folders(checkpoints),
    )  # fmt: skip
    if crew is None:
        trainer.fit()
    else:
        own = {name: getattr(method, name) for name in knobs(method)}
        crew.hand_out(
            JOB, team.packed(gold.save, "model:"), {"method": own, "training": asdict(training), "forget": forget}
        )
        with crew.acting_together():
            trainer.fit()
    atomic.create_folder(folder, gold.save)
    checkpoint.clear(checkpoints)


def train_along(dataset: Callable[[], Dataset], stop: StopSignal) -> Job:
    """Return the job of a process that follows, by the name JOB: its rows of the steps that train a gold model.

    Args:
        dataset: returns the leader's images.
        stop: called before each step.
    """

    def run(crew: Team, about: dict[str, Any], told: dict[str, Tensor], device: torch.device) -> None:
        gold, images = team.unpacked(told, Diffusion.load, "model:"), dataset()
        assert gold is not None
        with stop.deferred(), crew.acting_together():
            Trainer(
                gold, Retrain(**about["method"]), images.train, tuple(about["forget"]), Training(**about["training"]),
                flip=images.natural, hooks=Hooks(should_stop=stop, progress=False),
            ).fit()  # fmt: skip

    return run
