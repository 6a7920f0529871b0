"""Correct a model: unlearn classes with one method, measure what was forgotten, kept and paid, and register the version."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from pipelines import lineage, registry, tracking
from pipelines.command import choose, main, parse
from pipelines.lineage import refuse_other_classes
from pipelines.parameter import for_method
from pipelines.process import Flag, die_with_parent, follows, stop_on_sigterm
from pipelines.request import Data, Forget, Model
from safemax import cache, checkpoint
from safemax.data import Dataset, parse_classes, to_float
from safemax.diffusion import Diffusion
from safemax.errors import InputError
from safemax.evaluation import SHOWN, Evaluation, Samples, kept_draw, measure, recognised
from safemax.judging import Judging, judges, reference
from safemax.knobs import check, knob, knobs
from safemax.methods import available, create, knobs_of
from safemax.methods.base import Method
from safemax.report import as_markdown, as_text, compare_samples, grid, table
from safemax.sampling import Sampler, sample
from safemax.trainer import Log, Result, Training, fit
from safemax.verdict import verdict


@dataclass(frozen=True)
class Choice:
    """The method."""

    method: str = knob("safemax", "unlearning method; each has knobs of its own", choices=tuple(available()))
    preset: str = knob("none", "named knobs of the method, such as paper; a knob that you change keeps your value")
    previews: int = knob(4, "pictures of samples on the way; 0 draws none", bounds=(0, 1000))

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
    previews: int = 4

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

    def forgotten_before(self, parent: str) -> tuple[int, ...]:
        """Return the classes that the model to correct has forgotten earlier, but for those that are asked for again.

        Their images are no longer trained on, they count neither as forgotten now nor as retained, and they are tested again.
        """
        return tuple(
            k for name in lineage.forgotten(parent)
            if (k := self.dataset.class_names.index(name)) not in self.forget
        )  # fmt: skip

    def checkpoints(self, model_digest: str) -> Path:
        """Return where this correction of this very model keeps its checkpoints: the same command finds them again."""
        return cache.folder("checkpoints") / cache.key({"model": model_digest, "forget": self.forget, **self.params()})


def correct(correction: Correction, stop: Flag, base: Callable[[], str] | None = None) -> str:
    """Run a correction in an MLflow run of its own, register the result, print its table and return its address.

    Args:
        correction: what to do.
        stop: asked before each step; True ends the run as KILLED, resumable.
        base: makes the model to correct where `correction.source` is not there yet, and returns its address.
    """
    if follows():
        diffusion = Diffusion.load(registry.resolve(correction.source))
        correction.method.refuse(diffusion)
        _fit(correction, diffusion, stop, correction.forgotten_before(correction.source))
        return ""
    for line in registry.sweep(correction.name):
        print(f"tidied what a killed run left: {line}")
    tags = {
        "kind": "correction",
        "unlearning.method": correction.method_name,
        "unlearning.forget": ",".join(correction.class_names),
    }
    with tracking.run(correction.run_name, experiment=correction.name, params=correction.params(), tags=tags) as run:
        run.dataset(correction.dataset, "training")
        parent = registry.pinned(base() if base else correction.source)
        diffusion = Diffusion.load(registry.resolve(parent))
        refuse_other_classes(diffusion, correction.dataset)
        correction.method.refuse(diffusion)
        return _Job(correction, run, diffusion, parent).finish(stop)


@dataclass(frozen=True)
class Found:
    """How a correction was found, where a search found it.

    Args:
        tags: for the version.
        evidence: JSON, for the version's evidence.
        preface: markdown that comes before the run's note and the version's description.
    """

    tags: dict[str, str] = field(default_factory=dict)
    evidence: dict[str, Any] = field(default_factory=dict)
    preface: str = ""


def conclude(
    correction: Correction,
    run: tracking.Run,
    diffusion: Diffusion,
    parent: str,
    stop: Flag,
    *,
    cost: dict[str, float],
    found: Found,
) -> str:
    """Measure and register a model that was unlearned before, as a correction says; return its address."""
    job = _Job(correction, run, diffusion, parent, found)
    job.started_from = Diffusion.load(registry.resolve(parent)).digest()
    with stop.at_once():
        job.judges = judges(correction.dataset, correction.judging, device=str(diffusion.device))
    return job.conclude(cost, stop)


@dataclass(frozen=True)
class Outcome:
    """What a correction came to: metrics before and after, what it cost, and what base and corrected model drew.

    Where the model to correct had forgotten classes earlier: how many of their samples are recognised now, by class, and the
    metrics of the first base, the last ancestor that had forgotten nothing.
    """

    before: dict[str, float]
    after: dict[str, float]
    cost: dict[str, float]
    base: Samples
    corrected: Samples
    earlier: dict[str, dict[str, float]] = field(default_factory=dict)
    root: dict[str, float] = field(default_factory=dict)

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics of the corrected model, with what they changed and what they cost."""
        compared = ("retain/accuracy", "retain/fid_judge", "retain/kid")
        deltas = {f"{name}_delta": self.after[name] - self.before[name] for name in compared}
        tested = {
            f"earlier/{key}_{name}": value for name, found in self.earlier.items() for key, value in found.items()
        }
        return {**self.after, **deltas, **tested, **self.cost}


def rehearse(correction: Correction, run: tracking.Run, folder: str, stop: Flag) -> Outcome:
    """Do in an open run all that `correct` does, but register nothing and move no alias.

    Args:
        correction: what to do.
        run: gets losses, metrics, pictures and note.
        folder: where the model that `correction.source` names lies.
        stop: asked before each step.
    """
    diffusion = Diffusion.load(folder)
    refuse_other_classes(diffusion, correction.dataset)
    correction.method.refuse(diffusion)
    job = _Job(correction, run, diffusion, folder)
    outcome = job.measure(job.unlearn(stop), stop)
    job.record(outcome)
    job.clear()
    return outcome


class _Job:
    """A correction under way: its run, and the model that changes."""

    def __init__(
        self, correction: Correction, run: tracking.Run, diffusion: Diffusion, parent: str, found: Found | None = None
    ) -> None:
        self.correction, self.run, self.diffusion, self.parent = correction, run, diffusion, parent
        self.found = found or Found()
        self.earlier = correction.forgotten_before(parent)
        self.seconds = 0.0

    def finish(self, stop: Flag) -> str:
        """Unlearn, measure base and corrected alike, register."""
        address = self.conclude(self.unlearn(stop), stop)
        self.clear()
        return address

    def unlearn(self, stop: Flag) -> dict[str, float]:
        """Change the model; return what that cost, and what is known of the prior."""
        asked = self.correction
        self.started_from = self.diffusion.digest()
        with stop.at_once():
            self.judges = judges(asked.dataset, asked.judging, device=str(self.diffusion.device))
        self.run.keep(asked.checkpoints(self.started_from))
        result = _fit(
            asked, self.diffusion, stop, self.earlier, log=self.run.log, origin=self.run.id, each=self._preview
        )
        if result.resumed_from and result.resumed_from != self.run.id:
            self.run.tag("resumed_from", result.resumed_from)
        return result.cost.metrics() | {f"prior/{name}": value for name, value in asked.method.facts().items()}

    def clear(self) -> None:
        """Remove the checkpoints of a correction that is over, and the metrics beside them."""
        self.run.let_go()
        checkpoint.clear(self.correction.checkpoints(self.started_from))

    def conclude(self, cost: dict[str, float], stop: Flag) -> str:
        """Measure base and corrected alike, register."""
        outcome = self.measure(cost, stop)
        return self._register(outcome, *self.record(outcome))

    def measure(self, cost: dict[str, float], stop: Flag) -> Outcome:
        """Draw from base and corrected model alike and measure both."""
        with stop.at_once():
            base = Diffusion.load(registry.resolve(self.parent)).to(self.diffusion.device)
            drawn, before = self._evaluated(base)
            corrected, after = self._evaluated(self.diffusion)
            names = self.correction.dataset.class_names
            earlier = {names[k]: recognised(corrected, self.judges, k) for k in self.earlier}
            root = self._root_metrics() if earlier else {}
        cost = cost | {"cost/evaluation_minutes": self.seconds / 60}
        return Outcome(before, after, cost, drawn, corrected, earlier, root)

    def _root_metrics(self) -> dict[str, float]:
        """Return the metrics of the first base by this correction's measure, none where it is no longer there."""
        with contextlib.suppress(InputError):
            root = lineage.origin(self.parent, "auto")
            if root is not None:
                return self._evaluated(Diffusion.load(registry.resolve(root)).to(self.diffusion.device))[1]
        return {}

    def _evaluated(self, diffusion: Diffusion) -> tuple[Samples, dict[str, float]]:
        """Draw from a model and measure what came; a class forgotten earlier is drawn as often as one forgotten now."""
        asked, started = self.correction, time.perf_counter()
        samples = kept_draw(diffusion, (*asked.forget, *self.earlier), self._more(asked.evaluation))
        real = reference(asked.dataset, self.judges).without(self.earlier)
        metrics = measure(samples.without(self.earlier), self.judges, real, asked.forget)
        self.seconds += time.perf_counter() - started
        return samples, metrics

    def _more(self, evaluation: Evaluation) -> Evaluation:
        now, then = len(self.correction.forget), len(self.earlier)
        first, second = (n * (now + then) // now for n in (evaluation.counts[0], evaluation.second_samples))
        return replace(evaluation, forget_samples=first, second_samples=second) if then else evaluation

    def _preview(self, step: int) -> None:
        pictures = self.correction.previews
        if not pictures or step % max(1, self.correction.training.steps // pictures):
            return
        order = torch.tensor([*self.correction.forget] * 8 + [k for k in range(self.diffusion.num_classes)])
        training = self.diffusion.training
        images = sample(self.diffusion, order, PREVIEW if self.diffusion.has_null else Sampler("ddim", 10, 1.0), seed=0)
        self.diffusion.train(training)
        with self.run.patient():
            self.run.picture(grid(images, 8), "samples/by_step", step)

    def record(self, outcome: Outcome) -> tuple[str, str]:
        """Log the outcome to the run, with a note; return the note's picture and its text."""
        asked, run = self.correction, self.run
        run.log(outcome.metrics)
        run.log({f"base/{name}": value for name, value in outcome.before.items()})
        run.table(table(outcome.before, outcome.after).reset_index(), "metrics")
        run.json(self.judges.about, "judges")
        pair = {"base": outcome.base, "corrected": outcome.corrected}
        picture = run.picture(
            compare_samples(pair, asked.dataset.class_names, (*asked.forget, *self.earlier), asked.evaluation),
            "comparison",
        )
        strip = self._strip([outcome.base, outcome.corrected])
        text = f"{self.found.preface}{_note(asked, outcome, picture)}"
        run.note(f"{strip}\n\n{text}")
        run.flush()  # a version exists only if its run has its numbers
        return strip, text

    def _register(self, outcome: Outcome, strip: str, text: str) -> str:
        asked, run = self.correction, self.run
        tags = {
            "kind": "correction",
            "unlearning.method": asked.method_name,
            "parent": self.parent,
            "protocol": asked.evaluation.protocol,
            "data.digest": asked.dataset.digest,
            "verdict": verdict(outcome.after, outcome.before).outcome,
            "git.commit": str(tracking.environment()["commit"]),
            **self.found.tags,
        }
        origin = f"Corrected from {registry.link(self.parent)} by run [{asked.run_name}]({run.page})."
        version = registry.register(
            self.diffusion, asked.name, run_id=run.id, evidence=self._evidence(outcome),
            tags=tags, description=f"{text}\n\n{origin}", alias="candidate",
        )  # fmt: skip
        run.tag("version", f"models:/{asked.name}/{version}")
        run.note(f"{strip}\n\n{text}\n\nRegistered as {registry.link(f'models:/{asked.name}/{version}')}.")
        print(f"\n{asked.run_name}\n\n{as_text(_shown(outcome))}\n")
        print("  ".join(f"{name.removeprefix('cost/')} {value:.3g}" for name, value in outcome.cost.items()))
        print(f"\nregistered as models:/{asked.name}/{version}, alias candidate\n{run.url}  (after `make ui`)")
        return f"models:/{asked.name}/{version}"

    def _strip(self, drawn: list[Samples]) -> str:
        """Log the forgotten class alone, before and after, in one row: the UI shows the first 100 pixels of a note."""
        first = self.correction.forget[0]
        rows = [to_float(images[labels == first][:SHOWN])
                for each in drawn
                for images, labels in ((each.images, each.labels), (each.second_images, each.second_labels))]  # fmt: skip
        return self.run.picture(grid(torch.cat(rows), 4 * SHOWN), "samples/forgotten")

    def _evidence(self, outcome: Outcome) -> dict[str, Any]:
        """Return what the gates judge and what a repetition needs, as JSON."""
        asked = self.correction
        chain = {"earlier": outcome.earlier, "root_metrics": outcome.root} if self.earlier else {}
        return {
            "forgotten": sorted({*outcome.earlier, *asked.class_names}),
            "metrics": outcome.metrics,
            "base_metrics": outcome.before,
            **chain,
            "parameters": asked.params(),
            "judging": asdict(asked.judging),
            "parent": self.parent,
            "parent_digest": self.started_from,
            "model_digest": self.diffusion.digest(),
            "data_digest": asked.dataset.digest,
            "environment": tracking.environment(),
            "judges": self.judges.about,
            **self.found.evidence,
        }


def _fit(
    asked: Correction,
    diffusion: Diffusion,
    stop: Flag,
    earlier: tuple[int, ...],
    *,
    log: Log | None = None,
    origin: str = "",
    each: Callable[[int], None] | None = None,
) -> Result:
    return fit(
        diffusion, asked.method, asked.dataset.train.without(earlier), asked.forget, asked.training,
        flip=asked.dataset.natural, log=log, folder=asked.checkpoints(diffusion.digest()),
        priors=cache.folder("priors"), origin=origin, stop=stop, each=each,
    )  # fmt: skip


def _shown(outcome: Outcome) -> pd.DataFrame:
    return table({name: outcome.before[name] for name in HEADLINE if name in outcome.before}, outcome.after)


def _note(asked: Correction, outcome: Outcome, picture: str) -> str:
    costs = ", ".join(
        f"{name.rpartition('/')[2].replace('_', ' ')} {value:.3g}" for name, value in outcome.cost.items()
    )
    tested = "".join(
        f"\n\nForgotten earlier: {name}, {found['recognised']:.3g} % recognised now (95 %: at most "
        f"{found['recognised_high']:.3g} %)." for name, found in outcome.earlier.items()
    )  # fmt: skip
    return (
        f"**{asked.method_name}** on {asked.dataset.name}: forget {', '.join(asked.class_names)}. {_brief(outcome)}"
        f"\n\n{picture}\n\n"
        f"{as_markdown(_shown(outcome))}{tested}\n\nShares, UA and accuracy in percent; protocol {asked.evaluation.protocol} "
        f"({asked.evaluation.main_sampler}, then {asked.evaluation.second_sampler}).\n\nCost: {costs}."
    )


def _brief(outcome: Outcome) -> str:
    """Return what a row of the registry's list of versions has room for."""
    after, before = outcome.after, outcome.before
    return (
        f"UA {after['forget/ua']:.3g} %, recognised at most {after['forget/recognised_high']:.2g} %, accuracy "
        f"{after['retain/accuracy']:.3g} % (base {before['retain/accuracy']:.3g}), FID {after['retain/fid_judge']:.3g} "
        f"(base {before['retain/fid_judge']:.3g}), {outcome.cost['cost/runtime_minutes']:.2g} minutes."
    )


def find_base(name: str, data: str) -> str:
    """Return the address of a product model's registered base; raise InputError, with the command that makes one."""
    found = registry.find(name, "base")
    if found is None:
        raise InputError(
            f"model = base: {name} has no version with the alias base; `mlflow run . -e pretrain -P data={data}` makes one"
        )
    return found


def with_preset(name: str, method: Method, preset: str) -> Method:
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
        with_preset(name, chosen[name], chosen["method"].preset), chosen["training"], chosen["evaluation"], chosen["judging"],
        chosen["method"].previews,
    )  # fmt: skip
    correct(correction, stop)


if __name__ == "__main__":
    main(unlearn)
