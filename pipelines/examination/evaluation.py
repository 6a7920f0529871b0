"""The measurement of a model under examination, and of the base that it is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pipelines.correction.retrained import GoldOptions
from pipelines.engine.signals import StopSignal
from pipelines.examination.subject import Subject
from pipelines.registry import lineage
from safemax.diffusion.model import Diffusion
from safemax.evaluation.measure import measure
from safemax.evaluation.protocol import Evaluation
from safemax.evaluation.samples import Samples, cached_samples
from safemax.judges.config import JudgeConfig
from safemax.judges.load import Judges, judges
from safemax.judges.reference import reference


@dataclass(frozen=True, eq=False)
class Measured:
    """A model's samples and their metrics."""

    address: str
    samples: Samples
    metrics: dict[str, float]


@dataclass(frozen=True, eq=False)
class Evaluator:
    """What measures models alike: the base, the model under examination.

    Args:
        subject: the model under examination; classes that it has forgotten but that are not looked for are left out.
        evaluation: samplers, seeds and counts.
        judges: of the data set.
        gold: a model that never saw the classes, None where there is none.
        known: metrics of models that a worker has measured, by address.
    """

    subject: Subject
    evaluation: Evaluation
    judges: Judges
    gold: Diffusion | None
    known: Mapping[str, dict[str, float]] = field(default_factory=dict)

    @classmethod
    def load(
        cls,
        subject: Subject,
        diffusion: Diffusion,
        evaluation: Evaluation,
        judging: JudgeConfig,
        gold: GoldOptions,
        stop: StopSignal,
    ) -> Evaluator:
        """Load the gold model and the judges; each is trained if it must be."""
        model = gold.find(diffusion, subject.base, subject.dataset, subject.classes.forget, stop)
        with stop.interruptible():
            loaded = judges(subject.dataset, judging, device=str(diffusion.device))
        return cls(subject, evaluation, loaded, model)

    def measure(self, address: str, diffusion: Diffusion) -> Measured:
        """Draw from a model, or take the same samples from the cache, and measure them."""
        classes = self.subject.classes
        samples = cached_samples(diffusion, classes.forget, self.evaluation)
        if address in self.known:
            return Measured(address, samples, self.known[address])
        gold = None
        if self.gold is not None:
            gold = classes.counted(cached_samples(self.gold, classes.forget, self.evaluation))
        real = classes.counted(reference(self.subject.dataset, self.judges))
        metrics = measure(classes.counted(samples), self.judges, real, classes.forget, gold=gold)
        return Measured(address, samples, metrics)

    def measure_base(self) -> Measured | None:
        """Measure the base, if there is one."""
        base = self.subject.base
        return self.measure(base, lineage.load(base, self.subject.dataset)) if base else None
