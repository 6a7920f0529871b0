"""Correct a model: unlearn classes with one method, measure what was forgotten, kept and paid, and register the version."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure

from pipelines import registry, tracking
from pipelines.command import choose, main, parse
from pipelines.parameter import for_method
from pipelines.process import Flag, die_with_parent, stop_on_sigterm
from pipelines.request import Data, Forget, Model
from safemax import cache, checkpoint
from safemax.data import Dataset, parse_classes
from safemax.diffusion import Diffusion
from safemax.errors import InputError
from safemax.evaluation import Evaluation, Samples, kept_draw, measure
from safemax.judging import Judges, Judging, judges, reference
from safemax.knobs import check, knob, knobs
from safemax.methods import available, create, knobs_of
from safemax.methods.base import Method
from safemax.report import as_markdown, as_text, compare_samples, grid, table
from safemax.sampling import Sampler, sample
from safemax.trainer import Result, Training, fit


@dataclass(frozen=True)
class Choice:
    """The method."""

    method: str = knob("safemax", "unlearning method; each has knobs of its own", choices=tuple(available()))
    preset: str = knob("none", "named knobs of the method, such as paper; a knob that you change keeps your value")

    def __post_init__(self) -> None:
        check(self)


PARAMETERS: dict[str, type] = {
    "method": Choice,
    "data": Data,
    "forget": Forget,
    "model": Model,
    "training": Training,
    "evaluation": Evaluation,
    "judging": Judging,
}
# What a reader wants to see first, in this order; the rest of the metrics is on the run's page.
HEADLINE = (
    *("forget/ua_reject", "forget/recognised", "forget/rejected", "forget/other", "forget/second_ua_reject"),
    *("forget/ua", "forget/entropy", "forget/precision", "forget/coverage"),
    *("retain/accuracy", "retain/fid_judge", "retain/kid"),
)
PREVIEW = Sampler("ddim", 10)


@dataclass(frozen=True)
class Correction:
    """Everything that decides a correction's outcome."""

    dataset: Dataset
    forget: tuple[int, ...]
    source: str
    name: str
    method_name: str
    method: Method
    training: Training
    evaluation: Evaluation
    judging: Judging

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
        groups = {"method": knobs_of(self.method), "train": asdict(self.training), "eval": self.evaluation.describe()}
        dotted = {f"{group}.{key}": value for group, values in groups.items() for key, value in values.items()}
        names = {
            "data.name": self.dataset.name,
            "data.forget": ",".join(self.class_names),
            "data.digest": self.dataset.digest,
        }
        return {**names, "model.source": self.source, "method.name": self.method_name, **dotted}


def correct(correction: Correction, stop: Flag, base: Callable[[], str] | None = None) -> str:
    """Run a correction in an MLflow run of its own, register the result, print its table and return its address.

    Args:
        correction: what to do.
        stop: asked before each step; True ends the run as KILLED, resumable.
        base: makes the model to correct where `correction.source` is not there yet, and returns its address.
    """
    tags = {
        "kind": "correction",
        "unlearning.method": correction.method_name,
        "unlearning.forget": ",".join(correction.class_names),
    }
    with tracking.run(correction.run_name, experiment=correction.name, params=correction.params(), tags=tags) as run:
        run.dataset(correction.dataset, "training")
        parent = registry.pinned(base() if base else correction.source)
        diffusion = Diffusion.load(registry.resolve(parent))
        _refuse_other_classes(diffusion, correction.dataset)
        return _Job(correction, run, diffusion, parent).finish(stop)


class _Job:
    """A correction under way: its run, and the model that changes."""

    def __init__(self, correction: Correction, run: tracking.Run, diffusion: Diffusion, parent: str) -> None:
        self.correction, self.run, self.diffusion, self.parent = correction, run, diffusion, parent
        self.seconds = 0.0

    def finish(self, stop: Flag) -> str:
        """Measure the base, unlearn, measure again, register."""
        asked = self.correction
        asked.method.refuse(self.diffusion)
        self.started_from = self.diffusion.digest()
        facts = {"model": self.started_from, "forget": asked.forget, **asked.params()}
        folder = cache.folder("checkpoints") / cache.key(facts)
        with stop.at_once():
            base, before = self._evaluated()
        result = self._unlearn(folder, stop)
        with stop.at_once():
            corrected, after = self._evaluated()
        cost = result.cost.metrics() | {"cost/evaluation_minutes": self.seconds / 60}
        address = self._publish(
            before,
            after,
            cost,
            compare_samples(
                {"base": base, "corrected": corrected}, asked.dataset.class_names, asked.forget, asked.evaluation
            ),
        )
        checkpoint.clear(folder)
        return address

    @cached_property
    def judges(self) -> Judges:
        """The judges, trained or loaded when first asked."""
        return judges(self.correction.dataset, self.correction.judging, device=str(self.diffusion.device))

    def _evaluated(self) -> tuple[Samples, dict[str, float]]:
        """Draw from the model as it is now, and measure that."""
        asked, started = self.correction, time.perf_counter()
        samples = kept_draw(self.diffusion, asked.forget, asked.evaluation)
        metrics = measure(samples, self.judges, reference(asked.dataset, self.judges), asked.forget)
        self.seconds += time.perf_counter() - started
        return samples, metrics

    def _unlearn(self, folder: Path, stop: Flag) -> Result:
        asked = self.correction
        result = fit(
            self.diffusion, asked.method, asked.dataset.train, asked.forget, asked.training,
            flip=asked.dataset.natural, log=self.run.log, folder=folder, priors=cache.folder("priors"),
            origin=self.run.id, stop=stop, each=self._preview,
        )  # fmt: skip
        if result.resumed_from and result.resumed_from != self.run.id:
            self.run.tag("resumed_from", result.resumed_from)
        return result

    def _preview(self, step: int) -> None:
        every = max(1, self.correction.training.steps // 5)
        if step % every:
            return
        order = torch.tensor([*self.correction.forget] * 8 + [k for k in range(self.diffusion.num_classes)])
        training = self.diffusion.training
        images = sample(self.diffusion, order, PREVIEW if self.diffusion.has_null else Sampler("ddim", 10, 1.0), seed=0)
        self.diffusion.train(training)
        self.run.picture(grid(images, 8), "samples/by_step", step)

    def _publish(
        self, before: dict[str, float], after: dict[str, float], cost: dict[str, float], picture: Figure
    ) -> str:
        asked, run = self.correction, self.run
        shown = table({k: before[k] for k in HEADLINE if k in before}, after)
        every = table(before, after)
        deltas = {f"{k}_delta": after[k] - before[k] for k in ("retain/accuracy", "retain/fid_judge", "retain/kid")}
        metrics = {**after, **deltas, **cost}
        run.log(metrics)
        run.log({f"base/{name}": value for name, value in before.items()})
        run.table(every.reset_index(), "metrics")
        run.json(self.judges.about, "judges")
        note = _note(asked, shown, cost, run.picture(picture, "comparison"))
        run.note(note)
        evidence = self._evidence(metrics, before)
        tags = {
            "kind": "correction",
            "unlearning.method": asked.method_name,
            "parent": self.parent,
            "protocol": asked.evaluation.protocol,
            "data.digest": asked.dataset.digest,
        }
        version = registry.register(
            self.diffusion, asked.name, run_id=run.id, evidence=evidence, tags=tags, description=note, alias="candidate"
        )
        run.tag("version", f"models:/{asked.name}/{version}")
        print(f"\n{asked.run_name}\n\n{as_text(shown)}\n")
        print("  ".join(f"{name.removeprefix('cost/')} {value:.3g}" for name, value in cost.items()))
        print(f"\nregistered as models:/{asked.name}/{version}, alias candidate\n{run.url}  (after `make ui`)")
        return f"models:/{asked.name}/{version}"

    def _evidence(self, metrics: dict[str, float], before: dict[str, float]) -> dict[str, Any]:
        asked = self.correction
        earlier = registry.evidence(self.parent)["forgotten"] if self.parent.startswith("models:") else []
        return {
            "forgotten": sorted({*earlier, *asked.class_names}),
            "metrics": metrics,
            "base_metrics": before,
            "parameters": asked.params(),
            "parent": self.parent,
            "parent_digest": self.started_from,
            "model_digest": self.diffusion.digest(),
            "judges": self.judges.about,
        }


def _note(asked: Correction, shown: pd.DataFrame, cost: dict[str, float], picture: str) -> str:
    costs = ", ".join(f"{name.removeprefix('cost/').replace('_', ' ')} {value:.3g}" for name, value in cost.items())
    return (
        f"**{asked.method_name}** on {asked.dataset.name}: forget {', '.join(asked.class_names)}.\n\n{picture}\n\n"
        f"{as_markdown(shown)}\n\nShares, UA and accuracy in percent; protocol {asked.evaluation.protocol} "
        f"({asked.evaluation.main_sampler}, then {asked.evaluation.second_sampler}).\n\nCost: {costs}."
    )


def _refuse_other_classes(diffusion: Diffusion, dataset: Dataset) -> None:
    if diffusion.num_classes != dataset.num_classes or diffusion.image_shape != dataset.image_shape:
        raise InputError(
            f"the model knows {diffusion.num_classes} classes of {diffusion.image_shape} images, "
            f"data = {dataset.name} has {dataset.num_classes} of {dataset.image_shape}"
        )


def find_base(name: str, data: str) -> str:
    """Return the address of a product model's registered base; raise InputError, with the command that makes one."""
    found = registry.find(name, "base")
    if found is None:
        raise InputError(
            f"model = base: {name} has no version with the alias base; `mlflow run . -e pretrain -P data={data}` makes one"
        )
    return found


def _with_preset(name: str, method: Method, preset: str) -> Method:
    """Return the method with a preset's knobs where its own are at their defaults (`mlflow run` passes every default)."""
    fields = {each.name: each.default for each in dataclasses.fields(method)}
    changed = {key: getattr(method, key) for key in knobs(method) if getattr(method, key) != fields[key]}
    return create(name, preset="" if preset == "none" else preset, **changed)


def unlearn(argv: Sequence[str]) -> None:
    """Correct a model by the command line's parameters; --method chooses the method, and with it the knobs."""
    name, method_type = choose(argv, "method", {each: (each, cls) for each, cls in available().items()}, "safemax")
    chosen = parse("python -m pipelines.unlearn", __doc__ or "", for_method(PARAMETERS, name, method_type), argv)
    stop = stop_on_sigterm()
    die_with_parent()
    dataset = chosen["data"].load()
    product = chosen["model"].name_for(dataset)
    tracking.setup(product)
    source = chosen["model"].model
    correction = Correction(
        dataset, parse_classes(chosen["forget"].forget, dataset.class_names),
        find_base(product, chosen["data"].data) if source == "base" else source, product, name,
        _with_preset(name, chosen[name], chosen["method"].preset), chosen["training"], chosen["evaluation"], chosen["judging"],
    )  # fmt: skip
    correct(correction, stop)


if __name__ == "__main__":
    main(unlearn)
