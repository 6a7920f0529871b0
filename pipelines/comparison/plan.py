"""What a comparison compares, and the jobs that follow from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pipelines.cli.options import DataOptions
from pipelines.cli.parameters import UsageError, Value
from pipelines.comparison import variants
from pipelines.comparison.job import ChildConfig
from pipelines.comparison.variants import MethodVariant
from pipelines.correction.retrained import check_recipe, recipe_of
from pipelines.correction.source import seen_by_workers
from pipelines.engine.options import WorkerOptions
from pipelines.registry import lineage, model_versions
from pipelines.registry.lineage import agree_on_classes
from safemax.data.dataset import Dataset
from safemax.diffusion.model import Diffusion
from safemax.errors import InputError
from safemax.evaluation.protocol import Evaluation
from safemax.judges.config import JudgeConfig
from safemax.knobs import knob
from safemax.methods import create
from safemax.reports.comparison_tables import UNSEEDED

GOLD, BASE = "gold", "base"
_MOST_IN_TITLE = 4  # variants whose names make the title
AS_PAPER, EQUAL = "as the paper", "equal retain weight"
# Keys of the parameters by which comparisons are compared.
SHOWN = (
    *(f"comparison.{name}" for name in ("methods", "classes", "seeds", "steps", "overrides", "gold", "workers")),
    *("data.name", "model.source", "eval.protocol"),
)


@dataclass(frozen=True)
class ComparisonOptions(WorkerOptions):
    """What to compare."""

    methods: str = knob(
        "safemax,selective_amnesia,salun", "methods, or NAME@VARIANT, separated by commas; all takes every one"
    )
    classes: str = knob("all", "classes to forget, one at a time: all, or names or indices separated by commas")
    seeds: int = knob(1, "runs of each method and class, with the training seeds 0, 1, ...", bounds=(1, 1000))
    steps: int = knob(0, "optimizer steps of every method; 0 takes each method's own", bounds=(0, 10_000_000))
    batch_size: int = knob(0, "rows of a step of every method; 0 takes each method's own", bounds=(0, 1_000_000))
    overrides: str = knob("", "knobs of one method or of its training: salun.mask_ratio=0.3,salun.lr=1e-5")
    gold: bool = knob(True, "compare with a gold model too: trained without the class, made once, then cached")
    gold_steps: int = knob(0, "steps to train it; 0 takes as many as the base was trained", bounds=(0, 10_000_000))
    ablation: bool = knob(False, "make Figure 3 too: SAFEMax on the first class, over lambda")
    lambdas: str = knob("0,0.5,1,2,5", "values of lambda of the ablation")
    device: str = knob("auto", "auto takes a GPU where there is one", choices=("auto", "cpu", "cuda"))
    output: str = knob("none", "folder that tables and figures are written to as well")

    @property
    def common(self) -> dict[str, Value]:
        """Knobs of every method's training."""
        given: dict[str, Value] = {"steps": self.steps, "batch_size": self.batch_size}
        return {"device": self.device, **{name: value for name, value in given.items() if value}}


@dataclass(frozen=True)
class Comparison:
    """Everything that decides a comparison."""

    options: ComparisonOptions
    data: DataOptions
    dataset: Dataset
    classes: tuple[int, ...]
    source: str
    name: str
    variants: tuple[MethodVariant, ...]
    ablation: tuple[tuple[str, float, MethodVariant], ...]
    evaluation: Evaluation
    judging: JudgeConfig
    parameters: Mapping[str, Any] = field(
        default_factory=dict
    )  # of the command line, with their sources, for the record

    @cached_property
    def base(self) -> str:
        """The folder of the model to correct, verified."""
        return str(model_versions.resolve(self.source).absolute())

    def validate(self) -> None:
        """Raise InputError where the model to correct does not fit the data or a method, or has forgotten a class before.

        Gold models and retained classes would have to leave that class out for every variant alike, which is not supported.
        """
        forgotten = lineage.forgotten(self.source)
        if forgotten:
            names = ", ".join(forgotten)
            raise InputError(f"model = {self.source} has forgotten {names}; a comparison starts from a base")
        if self.options.gold:
            check_recipe(self.source, self.options.gold_steps)
        diffusion = Diffusion.load(self.base)
        agree_on_classes(diffusion, self.dataset)
        for each in (*self.variants, *(variant for _, _, variant in self.ablation)):
            each.method.validate(diffusion)

    @cached_property
    def model_digest(self) -> str:
        """The digest of the model to correct."""
        return Diffusion.load(self.base).digest()

    @property
    def class_names(self) -> list[str]:
        """The names of the forgotten classes."""
        return [self.dataset.class_names[k] for k in self.classes]

    @property
    def title(self) -> str:
        """Such as compare-digits-safemax+salun; with many variants, their number instead of their names."""
        labels = [each.label for each in self.variants]
        methods = "+".join(labels) if len(labels) <= _MOST_IN_TITLE else f"{len(labels)}-methods"
        return f"compare-{self.dataset.name}-{methods}"

    def params(self) -> dict[str, object]:
        """Return the parameters of the run by dotted key."""
        options = {f"comparison.{key}": value for key, value in asdict(self.options).items() if key != "output"}
        evaluation = {f"eval.{key}": value for key, value in self.evaluation.describe().items()}
        names = {"data.name": self.dataset.name, "data.digest": self.dataset.digest, "model.source": self.source}
        return {**options, **evaluation, **names, **self.dataset.params}

    def child_config(self) -> ChildConfig:
        """Return what all jobs share."""
        steps = self.options.gold_steps
        gold = asdict(recipe_of(self.source, steps)) if self.options.gold else {}
        base = seen_by_workers(Path(self.base), self.options)
        return ChildConfig(
            asdict(self.data), str(base), self.source, self.name, asdict(self.evaluation),
            asdict(self.judging), steps, gold, self.options.device,
        )  # fmt: skip

    def children(self) -> list[dict[str, Any]]:
        """Return the jobs whose results the tables need, gold models first, without their digests."""
        seeds = range(self.options.seeds)
        gold = [{"kind": GOLD, "forget": k, "seed": UNSEEDED} for k in self.classes if self.options.gold]
        # Class by class, so that the tables of a stopped comparison have complete rows.
        jobs = [(each, k, seed) for seed in seeds for k in self.classes for each in self.variants]
        jobs += [(each, self.classes[0], seed) for seed in seeds for _, _, each in self.ablation]
        return gold + [
            {"kind": "child", "variant": variant.describe(), "forget": k, "seed": seed} for variant, k, seed in jobs
        ]

    def preparations(self, children: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return the jobs to do before these children, so that no child is charged for what several need."""
        jobs: dict[tuple[object, ...], dict[str, Any]] = {}
        for each in children:
            jobs[BASE, each["forget"]] = {"kind": BASE, "forget": each["forget"], "seed": UNSEEDED}
            if each["kind"] == "child" and self._shares(each["variant"]["label"]):
                jobs["prior", each["variant"]["label"], each["seed"]] = {**each, "kind": "prior"}
        return list(jobs.values())

    def _shares(self, label: str) -> bool:
        every = (*self.variants, *(variant for _, _, variant in self.ablation))
        method = next(each.method for each in every if each.label == label)
        return method.shared and method.prior() is not None


def ablation_of(options: ComparisonOptions) -> tuple[tuple[str, float, MethodVariant], ...]:
    """Return (weighting, lambda, variant) of each point of Figure 3; the variants are `safemax` with two knobs changed."""
    if not options.ablation:
        return ()
    overrides = [word for word in options.overrides.split(",") if word.strip().startswith("safemax.")]
    (safemax,) = variants.read("safemax", ",".join(overrides), options.common)
    values = [_lambda(text) for text in options.lambdas.split(",")]
    settings = [(weighting, value) for weighting in (AS_PAPER, EQUAL) for value in values]
    return tuple((weighting, value, _with_lambda(safemax, value, weighting)) for weighting, value in settings)


def _with_lambda(safemax: MethodVariant, value: float, weighting: str) -> MethodVariant:
    # At lambda 0 the two weightings are the same.
    own = {**safemax.describe()["knobs"], "lmbda": value, "normalize_psi": weighting == EQUAL and value != 0}
    label = f"safemax@lambda={value:g}{'-equal' if weighting == EQUAL else ''}"
    return replace(safemax, label=label, method=create("safemax", **own))


def _lambda(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 100:
        raise UsageError(f"lambdas: {text.strip()!r} is not allowed; numbers from 0 to 100, separated by commas")
    return value
