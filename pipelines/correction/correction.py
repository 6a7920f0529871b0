"""What decides a correction: the data, the classes to forget, the model to correct, the method, and how it is measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safemax.data.class_split import ClassSplit
from safemax.data.dataset import Dataset
from safemax.diffusion.model import Diffusion
from safemax.evaluation.protocol import Evaluation
from safemax.judges.config import JudgeConfig
from safemax.knobs import without_added
from safemax.methods import knobs_of, validate_steps
from safemax.storage import cache
from safemax.training import optimizers, settings
from safemax.training.hooks import Folders, Hooks
from safemax.training.method import Method
from safemax.training.result import FitResult
from safemax.training.settings import Training
from safemax.training.trainer import Trainer

_SHOWN = (
    *("method.name", "data.forget", "model.source", "train.lr", "train.batch_size", "train.seed"),
    "eval.protocol",
)
_SHOWN_KNOBS = 3


@dataclass(frozen=True)
class Correction:
    """Everything that decides a correction's result.

    Args:
        dataset: real images of all classes.
        forget: labels to forget.
        source: address of the model to correct.
        name: the registered model, and the experiment.
        method_name: the method's name in the registry of methods.
        method: with its knobs.
        training: how long and how to unlearn.
        evaluation: how the base and the corrected model are measured.
        judging: the networks that look at the samples.
        previews: pictures of samples on the way; 0 makes none.
        parameters: the command line's parameters with value and source, for the record; they decide nothing.

    Raises:
        InputError: the method cannot run with these settings, such as no steps to learn in.
    """

    dataset: Dataset
    forget: tuple[int, ...]
    source: str
    name: str
    method_name: str
    method: Method
    training: Training
    evaluation: Evaluation
    judging: JudgeConfig
    previews: int = 4
    parameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        validate_steps(self.method, self.training.steps)
        settings.validate(self.method, self.training, self.forget)
        optimizers.validate(self.training)

    @property
    def class_names(self) -> list[str]:
        """The names of the classes to forget."""
        return [self.dataset.class_names[k] for k in self.forget]

    @property
    def run_name(self) -> str:
        """Such as safemax-digits-forget0-seed0."""
        return f"{self.method_name}-{self.dataset.name}-forget{'+'.join(self.class_names)}-seed{self.training.seed}"

    def params(self) -> dict[str, object]:
        """Return the parameters by dotted key."""
        return self._dotted(knobs_of(self.method), asdict(self.training))

    @property
    def shown_params(self) -> list[str]:
        """Keys of the parameters by which corrections are compared; of the method's knobs those that come first."""
        return [
            *_SHOWN,
            f"train.{self.training.length}",
            *(f"method.{name}" for name in list(knobs_of(self.method))[:_SHOWN_KNOBS]),
        ]

    def _dotted(self, method: Mapping[str, Any], training: Mapping[str, Any]) -> dict[str, object]:
        groups = {"method": method, "train": training, "eval": self.evaluation.describe()}
        dotted = {f"{group}.{key}": value for group, values in groups.items() for key, value in values.items()}
        names = {
            "data.name": self.dataset.name,
            "data.forget": ",".join(self.class_names),
            "data.digest": self.dataset.digest,
            **self.dataset.params,
        }
        return {**names, "model.source": self.source, "method.name": self.method_name, **dotted}

    def checkpoints(self, model_digest: str) -> Path:
        """Return where this correction of this very model keeps its checkpoints: the same command finds them again."""
        decisive = self._dotted(
            without_added(knobs_of(self.method), self.method), without_added(asdict(self.training), self.training)
        )
        return cache.folder("checkpoints") / cache.key({"model": model_digest, "forget": self.forget, **decisive})

    def unlearn(self, diffusion: Diffusion, classes: ClassSplit, hooks: Hooks, origin: str = "") -> FitResult:
        """Change the model's weights, without the images of classes forgotten earlier; errors as of `Trainer.fit`."""
        folders = Folders(self.checkpoints(diffusion.digest()), cache.folder("priors"), origin)
        return Trainer(
            diffusion, self.method, classes.counted(self.dataset.train), self.forget, self.training,
            flip=self.dataset.natural, hooks=hooks, folders=folders,
        ).fit()  # fmt: skip


@dataclass(frozen=True)
class SearchProvenance:
    """The search that a correction's knobs come from; empty where there was none.

    Args:
        tags: for the version.
        evidence: JSON, for the version's evidence.
        preface: markdown that comes before the run's note and the version's description.
    """

    tags: dict[str, str] = field(default_factory=dict)
    evidence: dict[str, Any] = field(default_factory=dict)
    preface: str = ""
