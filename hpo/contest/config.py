"""What a contest compares, and what each of its corrections is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pipelines.cli.method_options import for_method
from pipelines.cli.options import DataOptions
from pipelines.correction.base_model import BaseTraining, NetworkOptions
from pipelines.correction.source import fitting
from pipelines.engine.options import WorkerOptions
from safemax.attacks import find as find_attack
from safemax.data.class_names import parse_classes
from safemax.data.dataset import Dataset
from safemax.errors import InputError
from safemax.evaluation.enough_images import check_enough_images
from safemax.evaluation.protocol import Evaluation
from safemax.judges.config import JudgeConfig
from safemax.knobs import knob
from safemax.methods import available, create, find, preset_of
from safemax.reports.contest_tables import BASE, GOLD
from safemax.training.method import Method
from safemax.training.settings import Training

TUNED = "tuned"  # beside DEFAULT; BASE is not corrected, and GOLD trained without the class
GOLD_STANDARD = "retrain"  # the method that the gold rows stand for
# The base and the training seed of the search: no report uses them. Evaluation seeds of one correction are this far apart.
SEARCH_BASE, SEARCH_SEED, APART = 1000, 1000, 100
FEW = "safemax,far_targets,dimum,selective_amnesia,salun,sfron,munba,erasediff,expected_targets"
TRIAL_SAMPLES = 200  # of a forgotten class in a trial: 2 % are four of them


@dataclass(frozen=True)
class ContestOptions(WorkerOptions):
    """What to compare, by which budget, and where."""

    methods: str = knob(FEW, "methods, separated by commas; all takes every one")
    tune: int = knob(20, "trials of each method's search; 0 measures the defaults alone", bounds=(0, 10_000))
    rows: int = knob(
        76_800,
        "training rows of each correction and of each trial; the default is 300 steps of 256 rows",
        bounds=(1, 1_000_000_000),
    )
    classes: str = knob("0,3,8", "classes of the report, forgotten one at a time, by name or index")
    tune_classes: str = knob("1,5", "classes of the search, none of them in the report")
    bases: int = knob(1, "independently trained bases", bounds=(1, SEARCH_BASE))
    seeds: int = knob(1, "corrections of each class on each base", bounds=(1, SEARCH_SEED))
    evaluations: int = knob(2, "evaluation seeds of each correction", bounds=(1, APART))
    base_steps: int = knob(800, "training steps of a base", bounds=(1, 10_000_000))
    attacks: str = knob("none", "attacks on the corrections of the first seed, on base and gold; none, or names")
    device: str = knob("auto", "auto takes a GPU where there is one", choices=("auto", "cpu", "cuda"))
    files: str = knob(
        "contest",
        "folder of the result files, one for each method and base; the report includes files that others put there",
    )
    presets: str = knob(
        "none", "JSON file that tuned knobs are added to as presets, such as safemax/methods/tuned.json"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.attack_names:
            find_attack(name)

    @property
    def attack_names(self) -> tuple[str, ...]:
        """The attacks' names."""
        return () if self.attacks == "none" else tuple(name.strip() for name in self.attacks.split(","))

    @property
    def method_names(self) -> tuple[str, ...]:
        """The methods' names; InputError for an unknown or repeated one."""
        words = [word.strip() for word in self.methods.split(",")]
        others = [name for name in available() if name not in (GOLD_STANDARD, *words)]
        names = [name for word in words for name in (others if word == "all" else [word])]
        if len(set(names)) < len(names):
            raise InputError(f"methods = {self.methods} has a duplicate")
        for name in names:
            find(name)
        return tuple(names)


@dataclass(frozen=True)
class Correction:
    """One correction of one base, and how often it is measured.

    Args:
        method: name of the method, or BASE or GOLD.
        values: knobs of the method and of its training that differ from the defaults, by field.
        base: which base; also the seed of its training.
        forget: the label.
        seed: of the correction.
        evaluations: evaluation seeds.
        attacks: names of the attacks on it.
        trial: whether it is measured for a search, by what the score needs alone.
    """

    method: str
    values: tuple[tuple[str, Any], ...]
    base: int
    forget: int
    seed: int
    evaluations: tuple[int, ...]
    attacks: tuple[str, ...] = ()
    trial: bool = False


@dataclass(frozen=True)
class Contest:
    """Everything that decides a contest's numbers."""

    options: ContestOptions
    data: DataOptions
    network: NetworkOptions
    evaluation: Evaluation
    judging: JudgeConfig
    class_names: tuple[str, ...]
    digest: str

    @classmethod
    def of(
        cls, options: ContestOptions, data: DataOptions, network: NetworkOptions, evaluation: Evaluation,
        judging: JudgeConfig, dataset: Dataset,
    ) -> Contest:  # fmt: skip
        """Return the contest on a data set; InputError where the search would see classes of the report."""
        measured = replace(evaluation, user_samples=0)  # no number of a contest is of them
        contest = cls(options, data, network, measured, judging, dataset.class_names, dataset.digest)
        both = set(contest.classes) & set(contest.tune_classes)
        if options.tune and both:
            raise InputError(
                f"tune_classes has {dataset.class_names[min(both)]}, which is in classes; they must differ"
            )
        return contest

    def validate(self, dataset: Dataset) -> None:
        """Raise InputError where a base, a method or a measurement would be refused later.

        Args:
            dataset: the images.
        """
        if Path(self.network.architecture).is_dir():
            raise InputError(
                f"architecture = {self.network.architecture} is not allowed: a contest's gold models must never see the class, so "
                "they begin untrained; name an architecture"
            )
        diffusion = self.network.create(dataset, 0)
        trainings = [self.method(name, {}) for name in self.options.method_names]
        for label in (*self.classes, *self.tune_classes):
            check_enough_images(dataset, (label,))
            fitting(diffusion, dataset, self.evaluation, [(label,)], trainings if label == self.classes[0] else ())

    @classmethod
    def read(cls, facts: Mapping[str, Any]) -> Contest:
        """Return the contest whose fields (`dataclasses.asdict`) these are, as JSON brings them to a worker."""
        return cls(
            ContestOptions(**facts["options"]), DataOptions(**facts["data"]), NetworkOptions(**facts["network"]),
            Evaluation(**facts["evaluation"]), JudgeConfig(**facts["judging"]),
            tuple(facts["class_names"]), facts["digest"],
        )  # fmt: skip

    @property
    def classes(self) -> tuple[int, ...]:
        """Labels of the report."""
        return parse_classes(self.options.classes, self.class_names)

    @property
    def tune_classes(self) -> tuple[int, ...]:
        """Labels of the search."""
        return parse_classes(self.options.tune_classes, self.class_names) if self.options.tune else ()

    @property
    def tune_names(self) -> list[str]:
        """Names of the search's classes."""
        return [self.class_names[label] for label in self.tune_classes]

    def is_tuned(self, method: str) -> bool:
        """Whether a method is measured with tuned knobs too."""
        return bool(self.options.tune) and method not in (BASE, GOLD)

    def entries(self) -> list[tuple[str, int]]:
        """Return (method, base) in the order of work, base by base, so that an unfinished contest has whole columns."""
        names = (BASE, GOLD, *self.options.method_names)
        return [(name, base) for base in range(self.options.bases) for name in names]

    def measurement(self, correction: Correction, seed: int) -> Evaluation:
        """Return how a correction is measured with an evaluation seed; a trial draws no more than its score needs."""
        if not correction.trial:
            return replace(self.evaluation, evaluation_seed=seed)
        few = min(TRIAL_SAMPLES, self.evaluation.counts[0])
        return replace(self.evaluation, evaluation_seed=seed, forget_samples=few, second_samples=1)

    def base_training(self, base: int) -> Training:
        """Return how a base is trained."""
        return replace(
            Training(**asdict(BaseTraining())), steps=self.options.base_steps, seed=base, device=self.options.device
        )

    def method(self, name: str, values: dict[str, Any]) -> tuple[Method, Training]:
        """Return a method and its training with some values changed, by field; a preset's name may be among them."""
        method_type = find(name)
        training_type = for_method({"training": Training}, name, method_type)["training"]
        preset, given = values.get("preset", ""), {key: value for key, value in values.items() if key != "preset"}
        own, shared = preset_of(name, preset)
        fields = set(Training.__dataclass_fields__)
        of_training = shared | {key: value for key, value in given.items() if key in fields}
        of_method = own | {key: value for key, value in given.items() if key not in fields}
        settings = {"device": self.options.device, "checkpoint_every": 0, **of_training}
        return create(name, **of_method), Training(**{**asdict(training_type()), **settings})

    def corrections(self, name: str, base: int, values: dict[str, Any]) -> Iterator[Correction]:
        """Yield the corrections of a method on a base, with these values."""
        seeds = range(1 if name in (BASE, GOLD) else self.options.seeds)
        for label in self.classes:
            for seed in seeds:
                evaluations = tuple(seed * APART + i for i in range(self.options.evaluations))
                attacks = self.options.attack_names if seed == 0 else ()
                yield Correction(name, tuple(sorted(values.items())), base, label, seed, evaluations, attacks)

    def describe(self) -> dict[str, Any]:
        """Return what files must share to stand in one table."""
        options, network = self.options, asdict(self.network)
        del network["name"]  # of the registered model: it decides no number
        return {
            "data": self.data.data, "digest": self.digest, "classes": [self.class_names[k] for k in self.classes],
            "rows": options.rows, "base_steps": options.base_steps, "network": network,
            "judging": asdict(self.judging), **self.evaluation.describe(),
        }  # fmt: skip
