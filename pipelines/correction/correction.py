"""A correction from the model that must forget to the version that has: unlearn, measure, record, register."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from pipelines import tracking
from pipelines.correction.result import CorrectionResult
from pipelines.engine.signals import StopSignal, is_follower_rank
from pipelines.registry import lineage, model_versions, orphans, registration
from pipelines.registry.lineage import agree_on_classes
from safemax.data.batches import to_float
from safemax.data.dataset import Dataset
from safemax.diffusion.model import Diffusion
from safemax.diffusion.sampling import Sampler, sample
from safemax.errors import InputError
from safemax.evaluation.measure import SHOWN, Evaluation, Samples, cached_samples, measure, recognised
from safemax.evaluation.verdict import verdict
from safemax.judges.load import JudgeConfig, judges, reference
from safemax.methods import knobs_of
from safemax.reports.images_and_tables import as_markdown, as_text, compare_samples, grid, table
from safemax.storage import cache, checkpoint
from safemax.training.method import Method
from safemax.training.trainer import Log, Result, Training, accelerate, fit

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
    judging: JudgeConfig
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

    def earlier(self, gone: Sequence[str]) -> tuple[int, ...]:
        """Return those of the classes that the model to correct has forgotten which are not asked for again.

        Their images are no longer trained on, they count neither as forgotten now nor as retained, and they are tested again.
        """
        return tuple(k for k in map(self.dataset.class_names.index, gone) if k not in self.forget)

    def checkpoints(self, model_digest: str) -> Path:
        """Return where this correction of this very model keeps its checkpoints: the same command finds them again."""
        return cache.folder("checkpoints") / cache.key({"model": model_digest, "forget": self.forget, **self.params()})


@dataclass(frozen=True)
class SearchProvenance:
    """How a correction was found, where a search found it.

    Args:
        tags: for the version.
        evidence: JSON, for the version's evidence.
        preface: markdown that comes before the run's note and the version's description.
    """

    tags: dict[str, str] = field(default_factory=dict)
    evidence: dict[str, Any] = field(default_factory=dict)
    preface: str = ""


def correct(correction: Correction, stop: StopSignal, base: Callable[[], str] | None = None) -> str:
    """Run a correction in an MLflow run of its own, register the result, print its table and return its address.

    Args:
        correction: what to do.
        stop: asked before each step; True ends the run as KILLED, resumable.
        base: makes the model to correct where `correction.source` is not there yet, and returns its address.
    """
    if is_follower_rank():
        diffusion = Diffusion.load(model_versions.resolve(correction.source))
        correction.method.validate(diffusion)
        _fit(correction, diffusion, stop, correction.earlier(lineage.forgotten(correction.source)))
        return ""
    for line in orphans.remove_orphans(correction.name):
        print(f"tidied what a killed run left: {line}")
    tags = {
        "kind": "correction",
        "unlearning.method": correction.method_name,
        "unlearning.forget": ",".join(correction.class_names),
    }
    with tracking.run(correction.run_name, experiment=correction.name, params=correction.params(), tags=tags) as run:
        run.dataset(correction.dataset, "training")
        parent = model_versions.pinned(base() if base else correction.source)
        diffusion = Diffusion.load(model_versions.resolve(parent))
        return _CorrectionRun(correction, run, diffusion, parent).finish(stop)


def measure_and_register(
    correction: Correction,
    run: tracking.Run,
    diffusion: Diffusion,
    parent: str,
    stop: StopSignal,
    *,
    cost: dict[str, float],
    found: SearchProvenance,
) -> str:
    """Measure and register a model that was unlearned before, as a correction says; return its address."""
    job = _CorrectionRun(correction, run, diffusion, parent, found)
    job.started_from = Diffusion.load(model_versions.resolve(parent)).digest()
    with stop.interruptible():
        job.judges = judges(correction.dataset, correction.judging, device=str(diffusion.device))
    return job.measure_and_register(cost, stop)


def run_unregistered(correction: Correction, run: tracking.Run, folder: str, stop: StopSignal) -> CorrectionResult:
    """Do in an open run all that `correct` does, but register nothing and move no alias.

    Args:
        correction: what to do.
        run: gets losses, metrics, pictures and note.
        folder: where the model that `correction.source` names lies.
        stop: asked before each step.
    """
    job = _CorrectionRun(correction, run, Diffusion.load(folder), folder)
    outcome = job.measure(job.unlearn(stop), stop)
    job.record(outcome)
    job.clear()
    return outcome


class _CorrectionRun:
    """A correction under way: its run, and the model that changes."""

    def __init__(
        self,
        correction: Correction,
        run: tracking.Run,
        diffusion: Diffusion,
        parent: str,
        found: SearchProvenance | None = None,
    ) -> None:
        agree_on_classes(diffusion, correction.dataset)
        correction.method.validate(diffusion)
        self.correction, self.run, self.parent = correction, run, parent
        self.diffusion = diffusion.to(accelerate(correction.training).device)  # where judges work, too
        self.found = found or SearchProvenance()
        self.gone = lineage.forgotten(parent)
        self.earlier = correction.earlier(self.gone)
        self.seconds = 0.0

    def finish(self, stop: StopSignal) -> str:
        """Unlearn, measure base and corrected alike, register."""
        address = self.measure_and_register(self.unlearn(stop), stop)
        self.clear()
        return address

    def unlearn(self, stop: StopSignal) -> dict[str, float]:
        """Change the model; return what that cost, and what is known of the prior."""
        asked = self.correction
        self.started_from = self.diffusion.digest()
        with stop.interruptible():
            self.judges = judges(asked.dataset, asked.judging, device=str(self.diffusion.device))
        self.run.start_journal(asked.checkpoints(self.started_from))
        result = _fit(
            asked, self.diffusion, stop, self.earlier, log=self.run.log, origin=self.run.id, each=self._preview
        )
        if result.resumed_from and result.resumed_from != self.run.id:
            self.run.tag("resumed_from", result.resumed_from)
        return result.cost.metrics() | {f"prior/{name}": value for name, value in asked.method.facts().items()}

    def clear(self) -> None:
        """Remove the checkpoints of a correction that is over, and the metrics beside them."""
        self.run.delete_journal()
        checkpoint.clear(self.correction.checkpoints(self.started_from))

    def measure_and_register(self, cost: dict[str, float], stop: StopSignal) -> str:
        """Measure base and corrected alike, register."""
        outcome = self.measure(cost, stop)
        return self._register(outcome, *self.record(outcome))

    def measure(self, cost: dict[str, float], stop: StopSignal) -> CorrectionResult:
        """Draw from base and corrected model alike and measure both."""
        with stop.interruptible():
            base = Diffusion.load(model_versions.resolve(self.parent)).to(self.diffusion.device)
            drawn, before = self._evaluated(base)
            corrected, after = self._evaluated(self.diffusion)
            names = self.correction.dataset.class_names
            earlier = {names[k]: recognised(corrected, self.judges, k) for k in self.earlier}
            root = self._root_metrics() if self.gone else None
        cost = cost | {"cost/evaluation_minutes": self.seconds / 60}
        return CorrectionResult(before, after, cost, drawn, corrected, earlier, root)

    def _root_metrics(self) -> dict[str, float]:
        """Return the metrics of the first base by this correction's measure, empty where it is no longer there."""
        with contextlib.suppress(InputError):
            root = lineage.origin(self.parent, "auto")
            if root is not None:
                return self._evaluated(Diffusion.load(model_versions.resolve(root)).to(self.diffusion.device))[1]
        return {}

    def _evaluated(self, diffusion: Diffusion) -> tuple[Samples, dict[str, float]]:
        """Draw from a model and measure what came; a class forgotten earlier is drawn as often as one forgotten now."""
        asked, started = self.correction, time.perf_counter()
        samples = cached_samples(diffusion, (*asked.forget, *self.earlier), self._more(asked.evaluation))
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
        if not pictures or step % math.ceil(max(1, self.correction.training.steps) / pictures):
            return
        order = torch.tensor([*self.correction.forget] * 8 + [k for k in range(self.diffusion.num_classes)])
        images = sample(self.diffusion, order, PREVIEW if self.diffusion.has_null else Sampler("ddim", 10, 1.0), seed=0)
        with self.run.tolerate_outage():
            self.run.picture(grid(images, 8), "samples/by_step", step)

    def record(self, outcome: CorrectionResult) -> tuple[str, str]:
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

    def _register(self, outcome: CorrectionResult, strip: str, text: str) -> str:
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
        origin = f"Corrected from {model_versions.link(self.parent)} by run [{asked.run_name}]({run.page})."
        version = registration.register(
            self.diffusion, asked.name, run_id=run.id, evidence=self._evidence(outcome),
            tags=tags, description=f"{text}\n\n{origin}", alias="candidate",
        )  # fmt: skip
        run.tag("version", f"models:/{asked.name}/{version}")
        run.note(f"{strip}\n\n{text}\n\nRegistered as {model_versions.link(f'models:/{asked.name}/{version}')}.")
        print(f"\n{asked.run_name}\n\n{as_text(outcome.shown)}\n")
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

    def _evidence(self, outcome: CorrectionResult) -> dict[str, Any]:
        """Return what the gates judge and what a repetition needs, as JSON."""
        asked = self.correction
        chain = {} if outcome.root is None else {"earlier": outcome.earlier, "root_metrics": outcome.root}
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
            "judges_digest": self.judges.digest,
            **self.found.evidence,
        }


def _fit(
    asked: Correction,
    diffusion: Diffusion,
    stop: StopSignal,
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


def _note(asked: Correction, outcome: CorrectionResult, picture: str) -> str:
    costs = ", ".join(
        f"{name.rpartition('/')[2].replace('_', ' ')} {value:.3g}" for name, value in outcome.cost.items()
    )
    tested = "".join(
        f"\n\nForgotten earlier: {name}, {found['recognised']:.3g} % recognised now (95 %: at most "
        f"{found['recognised_high']:.3g} %)." for name, found in outcome.earlier.items()
    )  # fmt: skip
    return (
        f"**{asked.method_name}** on {asked.dataset.name}: forget {', '.join(asked.class_names)}. {outcome.brief}"
        f"\n\n{picture}\n\n"
        f"{as_markdown(outcome.shown)}{tested}\n\nShares, UA and accuracy in percent; protocol {asked.evaluation.protocol} "
        f"({asked.evaluation.main_sampler}, then {asked.evaluation.second_sampler}).\n\nCost: {costs}."
    )
