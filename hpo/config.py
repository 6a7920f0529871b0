"""The options of a search, and everything that decides one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from hpo import space
from hpo.objective import QUALITIES
from hpo.proposal import OBJECTIVES, SAMPLERS, StudyPlan
from hpo.trial import TrialConfig
from pipelines.cli.method_options import MethodOptions
from pipelines.cli.options import DataOptions, ForgetOptions, ModelOptions, PlanOptions
from pipelines.cli.parameters import with_defaults
from pipelines.correction.correction import Correction
from pipelines.correction.source import seen_by_workers
from pipelines.engine.options import WorkerOptions
from pipelines.registry import lineage, model_versions
from pipelines.registry.lineage import agree_on_classes
from safemax.data.dataset import Dataset
from safemax.diffusion.model import Diffusion
from safemax.evaluation.protocol import Evaluation
from safemax.judges.config import JudgeConfig
from safemax.judges.load import identity
from safemax.knobs import knob, knobs, without_added
from safemax.methods import create
from safemax.storage import cache
from safemax.storage.file_names import file_name
from safemax.training.method import Method
from safemax.training.settings import Training

# Keys of the parameters by which searches are compared.
SHOWN = (
    *(f"search.{name}" for name in ("trials", "objective", "quality", "prefer", "search_sampler", "search_seed")),
    *("search.accuracy_drop", "search.prune"),
    *("method.name", "data.forget", "model.source", "eval.protocol"),
)
PREFERENCES = {"knee": "", "forgetting": "forgetting", "quality": "quality", "cost": "minutes"}


@dataclass(frozen=True)
class SearchOptions(WorkerOptions):
    """How to search."""

    trials: int = knob(40, "trials of the study, the one with the defaults included", bounds=(1, 100_000))
    space: str = knob("auto", "changes to what is searched: lr=1e-5:1e-3:log,lambda=0:5,steps=150; auto makes none")
    objective: str = knob(
        "two",
        "what is minimised: forgetting and quality (two), minutes as well (three), or one scalar of the first two (joint)",
        choices=tuple(OBJECTIVES),
    )
    quality: str = knob(
        "fid", "distance of retained classes from real images, minus the base's", choices=tuple(QUALITIES)
    )
    accuracy_drop: float = knob(1.0, "points of retained accuracy that a trial may lose", bounds=(0, 100))
    search_sampler: str = knob("tpe", "rule that proposes trials; nsga2 needs more than 100 of them", choices=SAMPLERS)
    search_seed: int = knob(0, "fixes what the sampler proposes", bounds=(0, 2**62))
    prune: bool = knob(
        True, "end a trial early if three quarters of the others had far better denoising losses at the same step"
    )
    storage: str = knob("auto", "journal file, or postgresql://USER@HOST/DATABASE for several machines")
    study: str = knob("auto", "name of the study; auto makes one from what decides its trials")
    prefer: str = knob("knee", "which member of the front is registered", choices=tuple(PREFERENCES))
    final_samples: int = knob(3, "the front is measured again with this many times a trial's samples", bounds=(1, 1000))


# A trial's evaluation decides what the trial costs; the front is measured again with more samples.
PARAMETERS: dict[str, type] = {
    "search": SearchOptions,
    "method": MethodOptions,
    "data": DataOptions,
    "forget": ForgetOptions,
    "model": ModelOptions,
    "training": Training,
    "evaluation": with_defaults(Evaluation, forget_samples=100, retain_samples=50, second_samples=10),
    "judging": JudgeConfig,
    "plan": PlanOptions,
}


@dataclass(frozen=True)
class SearchConfig:
    """Everything that decides a search."""

    search: SearchOptions
    data: DataOptions
    dataset: Dataset
    forget: tuple[int, ...]
    source: str
    name: str
    method_name: str
    method: Method
    training: Training
    evaluation: Evaluation
    judging: JudgeConfig
    space: space.Space
    parameters: Mapping[str, Any] = field(
        default_factory=dict
    )  # of the command line, with their sources, for the record
    plans: bool = False  # whether to say what would be done, and do nothing

    @cached_property
    def parent(self) -> str:
        """The address of the model to correct, with a version number instead of an alias."""
        return model_versions.resolve_alias(self.source)

    @cached_property
    def base(self) -> Path:
        """The folder of the model to correct, verified."""
        return model_versions.resolve(self.parent).absolute()

    @cached_property
    def base_digest(self) -> str:
        """The digest of the model to correct; InputError where it does not fit the data or the method."""
        diffusion = Diffusion.load(self.base)
        agree_on_classes(diffusion, self.dataset)
        self.method.validate(diffusion)
        return diffusion.digest()

    @cached_property
    def forgotten(self) -> list[str]:
        """The names of all classes that the model to correct has forgotten so far."""
        return lineage.forgotten(self.parent)

    @property
    def class_names(self) -> str:
        """The names of the classes to forget, separated by commas."""
        return ",".join(self.dataset.class_names[k] for k in self.forget)

    @property
    def title(self) -> str:
        """Such as safemax-digits-forget0."""
        return f"{self.method_name}-{self.dataset.name}-forget{self.class_names.replace(',', '+')}"

    @property
    def tags(self) -> dict[str, str]:
        """Tags of all runs of a search, to filter by."""
        return {"unlearning.method": self.method_name, "unlearning.forget": self.class_names}

    @cached_property
    def key(self) -> str:
        """Digest of all that decides a trial and its result, but not of the number of trials, their storage or their machines."""
        decides = ("objective", "quality", "accuracy_drop", "search_sampler", "search_seed", "prune")
        facts = {name: getattr(self.search, name) for name in decides}
        if self.search.search_sampler == "grid":
            facts["trials"] = self.search.trials  # the number decides the grid's levels
        held = without_added(self.space.held, self.method, self.training)
        held = {name: value for name, value in held.items() if name not in ("device", "checkpoint_every")}
        facts |= {
            "data": self.dataset.digest,
            **self.dataset.flip_facts,
            "model": self.base_digest,
            "forget": self.forget,
        }
        facts |= {"method": self.method_name, "ranges": self.space.describe(), "first": self.space.first, "held": held}
        facts |= {"judges": identity(self.dataset, self.judging), "inception": self.judging.inception}
        return cache.key(facts | {"evaluation": self.evaluation.describe()})

    @property
    def study(self) -> str:
        """Name of the study."""
        return f"{self.title}-{self.key[:8]}" if self.search.study == "auto" else self.search.study

    @property
    def folder(self) -> Path:
        """Where trials write their files."""
        return cache.folder("studies").absolute() / file_name(self.study)

    @property
    def journal(self) -> Path:
        """The journal file of the study where storage is auto."""
        return self.folder.with_name(f"{self.folder.name}.journal")

    def plan(self) -> StudyPlan:
        """Return what decides the trials of the study."""
        search = self.search
        return StudyPlan(
            self.study, self.space, search.trials, search.objective, search.search_sampler, search.search_seed,
            search.accuracy_drop,
        )  # fmt: skip

    def trial_config(self) -> TrialConfig:
        """Return what all trials share."""
        return TrialConfig(
            asdict(self.data), str(seen_by_workers(self.base, self.search)), list(self.forget),
            self.forgotten, self.method_name, self._knobs(),
            asdict(self.training), asdict(self.evaluation), asdict(self.judging), str(self.folder),
            self.search.prune,
        )  # fmt: skip

    def params(self) -> dict[str, object]:
        """Return the parameters of the study's run by dotted key."""
        left_out = ("space", "storage", "study")  # the ranges and the tags say the first and the last
        options = {f"search.{key}": value for key, value in asdict(self.search).items() if key not in left_out}
        ranges = {f"space.{key}": value for key, value in self.space.describe().items()}
        return {**options, **ranges, **self.shared_params()}

    def shared_params(self) -> dict[str, object]:
        """Return the parameters that all trials share, by dotted key."""
        names = {"name": self.dataset.name, "forget": self.class_names, "digest": self.dataset.digest}
        dotted = {f"data.{key}": value for key, value in names.items()} | self.dataset.params
        dotted |= {f"eval.{key}": value for key, value in self.evaluation.describe().items()}
        return {**dotted, "model.source": self.parent, "method.name": self.method_name, **self.dotted(self.space.held)}

    def dotted(self, values: Mapping[str, Any]) -> dict[str, object]:
        """Return knobs by dotted key: lambda as method.lambda, lr as train.lr."""
        own = {external for external in values if space.by_field({external: 0}, type(self.method))}
        return {f"{'method' if name in own else 'train'}.{name}": value for name, value in values.items()}

    def by_field(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return searched knobs by the names of their fields, as trials take them."""
        return space.by_field(values, type(self.method)) | space.by_field(values, Training)

    def correction(self, values: Mapping[str, Any], evaluation: Evaluation) -> Correction:
        """Return a trial's correction, as `-e unlearn` would make it with these knobs."""
        method = create(self.method_name, **self._knobs() | space.by_field(values, type(self.method)))
        changes: dict[str, Any] = space.by_field(values, Training)
        training = replace(self.training, **changes)
        names = (self.parent, self.name, self.method_name)
        record = {**self.parameters, **{name: {"value": value} for name, value in asdict(self.data).items()}}
        return Correction(
            self.dataset, self.forget, *names, method, training, evaluation, self.judging, parameters=record
        )

    def _knobs(self) -> dict[str, Any]:
        return {field: getattr(self.method, field) for field in knobs(self.method)}
