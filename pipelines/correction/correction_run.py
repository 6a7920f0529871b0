"""A correction under way: the model that changes, and the MLflow run that records it."""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import asdict, replace
from typing import Any

import torch

from pipelines import tracking
from pipelines.correction import recorded_data
from pipelines.correction.correction import Correction, SearchProvenance
from pipelines.correction.result import CorrectionResult
from pipelines.engine.signals import StopSignal
from pipelines.registry import lineage, model_versions, registration
from safemax import metric_keys as keys
from safemax.data.batches import to_float
from safemax.diffusion.model import Diffusion
from safemax.diffusion.sampling import Sampler, sample
from safemax.errors import InputError
from safemax.evaluation.measure import measure, recognised
from safemax.evaluation.protocol import Evaluation
from safemax.evaluation.samples import SHORT_DRAW, SHOWN_PER_CLASS, Samples, announce, cached_samples
from safemax.judges.load import judges
from safemax.judges.reference import reference
from safemax.reports.images_and_tables import as_markdown, as_text, compare_samples, grid, labelled_sheet, metrics_table
from safemax.reports.numbers import percent
from safemax.storage import checkpoint
from safemax.training import memory
from safemax.training.devices import accelerator_for
from safemax.training.hooks import Hooks

PREVIEW = Sampler("ddim", 10)
_PREVIEWED = 8  # images of each forgotten class in a preview, and of the retained classes together


class CorrectionRun:
    """A correction under way.

    Args:
        correction: what to do.
        run: records it.
        diffusion: the model to correct, which changes in place.
        parent: its address.
        provenance: the search that the correction comes from, if any.

    Attributes:
        classes: which classes are forgotten now, were forgotten earlier, or are retained.
        judges: set by `load_judges`.
        parent_digest: of the model before it changed; set by `unlearn`.

    Raises:
        InputError: the model does not fit the data or the method.
    """

    def __init__(
        self,
        correction: Correction,
        run: tracking.Run,
        diffusion: Diffusion,
        parent: str,
        provenance: SearchProvenance | None = None,
    ) -> None:
        lineage.agree_on_classes(diffusion, correction.dataset)
        correction.method.validate(diffusion)
        self.correction, self.run, self.parent = correction, run, parent
        self.diffusion = diffusion.to(accelerator_for(correction.training).device)  # the judges run there too
        self.provenance = provenance or SearchProvenance()
        self.classes = lineage.class_split(parent, correction.forget, correction.dataset)
        self.parent_digest = ""
        self._seconds = 0.0  # spent on samples and metrics

    def load_judges(self, stop: StopSignal) -> None:
        """Load the judges, which are trained once."""
        with stop.interruptible():
            self.judges = judges(self.correction.dataset, self.correction.judging, device=str(self.diffusion.device))

    def unlearn(self, stop: StopSignal) -> dict[str, float]:
        """Change the model; return the metrics of its cost and of the method's prior."""
        self.parent_digest = self.diffusion.digest()
        if need := memory.check(self.diffusion, self.correction.training, self.diffusion.device):
            print(need)
        announce(self.diffusion, self.classes.all_forgotten, self._enough(), least=SHORT_DRAW)
        self.load_judges(stop)
        self.run.start_journal(self.correction.checkpoints(self.parent_digest))
        self._preview(0)
        hooks = Hooks(self.run.log, self._preview, stop, title=self.correction.method_name)
        result = self.correction.unlearn(self.diffusion, self.classes, hooks, origin=self.run.id)
        self.run.resumes(result.resumed_from)
        prior = {f"prior/{name}": value for name, value in self.correction.method.facts().items()}
        return result.cost.metrics() | prior

    def clear(self) -> None:
        """Remove the checkpoints of a correction that is over, and its journal of metrics."""
        self.run.delete_journal()
        checkpoint.clear(self.correction.checkpoints(self.parent_digest))

    def measure_and_register(self, cost: dict[str, float], stop: StopSignal) -> str:
        """Measure base and corrected model alike, record the result, register it and return its address."""
        result = self.measure(cost, stop)
        return self._register(result, *self.record(result))

    def measure(self, cost: dict[str, float], stop: StopSignal) -> CorrectionResult:
        """Draw from base and corrected model alike and measure both."""
        with stop.interruptible():
            base = Diffusion.load(model_versions.resolve(self.parent)).to(self.diffusion.device)
            base_samples, before = self._evaluate(base)
            corrected_samples, after = self._evaluate(self.diffusion)
            names = self.correction.dataset.class_names
            earlier = {names[k]: recognised(corrected_samples, self.judges, k) for k in self.classes.forgotten_earlier}
            root = self._root_metrics() if lineage.forgotten(self.parent) else None
        cost = cost | {keys.EVALUATION_MINUTES: self._seconds / 60}
        return CorrectionResult(before, after, cost, base_samples, corrected_samples, earlier, root)

    def _root_metrics(self) -> dict[str, float]:
        """Return the metrics of the first base, measured in the same way; {} where it no longer exists."""
        with contextlib.suppress(InputError):
            root = lineage.origin(self.parent, "auto")
            if root is not None:
                return self._evaluate(Diffusion.load(model_versions.resolve(root)).to(self.diffusion.device))[1]
        return {}

    def _evaluate(self, diffusion: Diffusion) -> tuple[Samples, dict[str, float]]:
        """Draw from a model and measure the samples; a class forgotten earlier is drawn as often as one forgotten now."""
        started, classes = time.perf_counter(), self.classes
        samples = cached_samples(diffusion, classes.all_forgotten, self._enough())
        real = classes.counted(reference(self.correction.dataset, self.judges))
        metrics = measure(classes.counted(samples), self.judges, real, classes.forget)
        self._seconds += time.perf_counter() - started
        return samples, metrics

    def _enough(self) -> Evaluation:
        """Return the evaluation with as many images of a class that was forgotten earlier as of one forgotten now."""
        evaluation = self.correction.evaluation
        forget, second = (self.classes.scaled(n) for n in (evaluation.counts[0], evaluation.second_samples))
        return replace(evaluation, forget_samples=forget, second_samples=second)

    def _preview(self, step: int) -> None:
        previews, training = self.correction.previews, self.correction.training
        if not previews or (step % math.ceil(max(1, training.steps) / previews) and step != training.steps):
            return
        names, forget = self.correction.dataset.class_names, self.correction.forget
        retained = [k for k in range(self.diffusion.num_classes) if k not in forget][:_PREVIEWED]
        labels = torch.tensor([*forget] * _PREVIEWED + retained)
        images = sample(self.diffusion, labels, PREVIEW.within(self.diffusion), seed=0)
        rows = {f"forget {names[k]}": images[labels == k] for k in forget}
        rows |= {f"keep {names[retained[0]]} to {names[retained[-1]]}": images[-len(retained) :]} if retained else {}
        title = f"step {step}" if training.minutes else f"step {step} of {training.steps}"
        with self.run.tolerate_outage():
            self.run.chart_picture(labelled_sheet(rows, title, len(forget)), "samples/by_step", step)

    def record(self, result: CorrectionResult) -> tuple[str, str]:
        """Log to the run all but the metrics; return the markdown of the note's first picture and of the rest of the note."""
        correction, run = self.correction, self.run
        run.tag("verdict", result.verdict.outcome)
        run.table(metrics_table(result.before, result.metrics).reset_index(), "metrics")
        run.json(self.judges.about, "judges")
        pair = {"base": result.base, "corrected": result.corrected}
        comparison = compare_samples(
            pair, correction.dataset.class_names, self.classes.all_forgotten, correction.evaluation
        )
        text = _note(correction, result, run.picture(comparison, "comparison"), self.provenance.preface)
        strip = self._strip([result.base, result.corrected])
        run.note(f"**{result.verdict.headline}**\n\n{strip}\n\n{result.verdict.grounds}\n\n{text}")
        run.flush()  # a version exists only if its run has its losses
        return strip, text

    def _strip(self, models: list[Samples]) -> str:
        """Log the first forgotten class, before and after, in one row: MLflow's UI shows the first 100 pixels of a note."""
        label = self.correction.forget[0]
        rows = [to_float(images[labels == label][:SHOWN_PER_CLASS])
                for samples in models
                for images, labels in (
                    (samples.images, samples.labels), (samples.second_images, samples.second_labels))]  # fmt: skip
        shown = dict(zip(("base", "base, 2nd", "now", "now, 2nd"), rows, strict=True))
        name = self.correction.dataset.class_names[label]
        self.run.chart_picture(labelled_sheet(shown, f"asked for {name}, by both samplers", 0), "samples/forgotten")
        return self.run.picture(grid(torch.cat(rows), 4 * SHOWN_PER_CLASS), "samples/forgotten")

    def _register(self, result: CorrectionResult, strip: str, text: str) -> str:
        correction, run, judged = self.correction, self.run, result.verdict
        tags = {
            "kind": "correction",
            "unlearning.method": correction.method_name,
            "parent": self.parent,
            "protocol": correction.evaluation.protocol,
            "data.digest": correction.dataset.digest,
            "verdict": judged.outcome,
            "git.commit": str(tracking.environment()["commit"]),
            **recorded_data.tag_of(correction.parameters, self.parent),
            **self.provenance.tags,
        }
        origin = f"Corrected from {model_versions.link(self.parent)} by run [{correction.run_name}]({run.page})."
        version = registration.register(
            self.diffusion, correction.name, run_id=run.id, evidence=self._evidence(result),
            tags=tags, description=f"**{judged.headline}** {judged.grounds}\n\n{origin}\n\n{text}", alias="candidate",
        )  # fmt: skip
        address = f"models:/{correction.name}/{version}"
        run.tag("version", address)
        registered = f"Registered as {model_versions.link(address)}."
        run.note(f"**{judged.headline}**\n\n{strip}\n\n{judged.grounds}\n\n{registered}\n\n{text}")
        print(f"\n{correction.run_name}\n\n{judged.headline}\n{judged.grounds}\n")
        print(f"{as_text(result.shown)}\n\n{result.spending}\n\nregistered as {address}, alias candidate")
        print(f"this run:  {run.url}\nall runs:  {run.experiment_url}\n(links open after `make ui`)")
        return address

    def _evidence(self, result: CorrectionResult) -> dict[str, Any]:
        """Return what the gates judge and what a repetition needs, as JSON."""
        correction = self.correction
        chain = {} if result.root is None else {"earlier": result.earlier, "root_metrics": result.root}
        return {
            "forgotten": sorted({*result.earlier, *correction.class_names}),
            "metrics": result.metrics,
            "base_metrics": result.before,
            **chain,
            "parameters": correction.params(),
            "judging": asdict(correction.judging),
            "parent": self.parent,
            "parent_digest": self.parent_digest,
            "model_digest": self.diffusion.digest(),
            "data_digest": correction.dataset.digest,
            "environment": tracking.environment(),
            "judges": self.judges.about,
            "judges_digest": self.judges.digest,
            **self.provenance.evidence,
        }


def _note(correction: Correction, result: CorrectionResult, picture: str, preface: str) -> str:
    earlier = "".join(
        f"\n\nForgotten earlier: {name}, of which {percent(shares['recognised'])} of the samples are recognised now, at most "
        f"{percent(shares['recognised_high'])} at the 95 % level." for name, shares in result.earlier.items()
    )  # fmt: skip
    return (
        f"`{correction.method_name}` on {correction.dataset.name}, forget {', '.join(correction.class_names)}. "
        f"{result.brief}\n\n{preface}{picture}\n\n"
        f"{as_markdown(result.shown)}{earlier}\n\nMeasured by protocol {correction.evaluation.protocol}: "
        f"{correction.evaluation.main_sampler.words}; second sampler: {correction.evaluation.second_sampler.words}."
        f"\n\nCost: {result.spending}."
    )
