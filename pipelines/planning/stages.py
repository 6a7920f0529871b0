"""The stages that several commands share: judges, a training, a correction, a measurement."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipelines.correction.correction import Correction
from pipelines.correction.retrained import GoldOptions
from pipelines.planning.plan import Stage
from pipelines.planning.rates import Rates, judge_seconds, none_head_seconds, rates
from pipelines.planning.work import attack_rows, work_of
from safemax.attacks.base import Attack
from safemax.data.dataset import Dataset
from safemax.diffusion.model import Diffusion
from safemax.evaluation import panel_classes
from safemax.evaluation.protocol import Evaluation
from safemax.evaluation.samples import cached_path, workload
from safemax.judges.config import JudgeConfig
from safemax.judges.load import NoneHeads, none_heads
from safemax.judges.own import own_judges
from safemax.reports.numbers import counted
from safemax.training.method import Method
from safemax.training.settings import Training

_WEIGHT_BYTES = 4
_CHECKPOINT = 4  # weights, their average and the optimizer's two moments


@dataclass(frozen=True)
class Planner:
    """What every stage depends on: the network, the images, the classes to forget and the machine's rates.

    Args:
        diffusion: a model with the network; its weights do not matter.
        dataset: the images.
        forget: the labels to forget; () where none are.
        rates: of the network on this machine.
    """

    diffusion: Diffusion
    dataset: Dataset
    forget: tuple[int, ...]
    rates: Rates

    @classmethod
    def measured(cls, diffusion: Diffusion, dataset: Dataset, forget: tuple[int, ...], training: Training) -> Planner:
        """Return a planner with the rates of this machine."""
        return cls(diffusion, dataset, forget, rates(diffusion, dataset, training))

    @property
    def basis(self) -> str:
        """How the minutes were found, in words."""
        drawn, trained = (1000 * each for each in (self.rates.drawn, self.rates.trained))
        return (
            f"Measured on this machine: {drawn:.2g} ms for one pass of a row in sampling, {trained:.2g} ms in training; kept in "
            "the cache's folder `rates`. Other work on the machine slows this down. Loading, metrics and MLflow take seconds more."
        )

    @property
    def model_megabytes(self) -> float:
        """The size of the network's weights."""
        return sum(each.numel() for each in self.diffusion.parameters()) * _WEIGHT_BYTES / 1e6

    def pretrain(self, training: Training, *, reused: bool = False) -> Stage:
        """Return the training of a base."""
        minutes = training.minutes or self.rates.minutes(0, training.steps * training.batch_size)
        does = f"train the base, architecture {self.diffusion.architecture}: {_steps(training)}"
        return Stage("pretrain", does, minutes, _CHECKPOINT * self.model_megabytes, reused)

    def judges(self, config: JudgeConfig) -> list[Stage]:
        """Return the training of the judges."""
        every = own_judges(self.dataset, config)
        trained = [
            Stage(
                f"judge {number} of {len(every)}",
                f"train {each.arch}{', which may answer none of these' if each.reject else ''}: {each.steps:,} steps",
                0.0 if each.cached else each.steps * judge_seconds(self.dataset, each.arch, reject=each.reject) / 60,
                0.0 if each.cached else 1.0,
                each.cached,
            )
            for number, each in enumerate(every, start=1)
        ]
        heads = none_heads(self.dataset, config)
        return [*trained, self._none_heads(heads)] if heads else trained

    def _none_heads(self, heads: NoneHeads) -> Stage:
        does = f"train {counted(heads.heads, 'head')} that may answer none of these, on {heads.arch}: {heads.draws:,} batches each"
        if heads.cached:
            return Stage("none heads", does, reused=True)
        minutes = heads.heads * heads.draws * none_head_seconds(self.dataset, heads.arch, heads.body) / 60
        return Stage("none heads", does, minutes, 1.0)

    def unlearn(self, name: str, method: Method, training: Training) -> list[Stage]:
        """Return a method's preparation, if it has one, and its steps."""
        work = work_of(method, training, self.dataset, self.forget, has_null=self.diffusion.has_null)
        prepared, step = work.preparation, work.step
        minutes = training.minutes or training.steps * self.rates.minutes(step.drawn, step.trained)
        learn = Stage(name, f"unlearn: {_steps(training)}", minutes, _CHECKPOINT * self.model_megabytes)
        if not prepared.drawn + prepared.trained:
            return [learn]
        does = f"prepare {name}: {prepared.drawn:,.0f} rows drawn, {prepared.trained:,.0f} rows with gradients"
        return [Stage("prepare", does, self.rates.minutes(prepared.drawn, prepared.trained)), learn]

    def draw(self, whose: str, evaluation: Evaluation, model: Diffusion | None = None) -> Stage:
        """Return the drawing of a model's samples.

        Args:
            whose: base, or corrected.
            evaluation: how many, and by which samplers.
            model: the model, where it exists already: what it drew before is reused.
        """
        images, rows = workload(self.diffusion, self.forget, evaluation)
        path = cached_path(model, self.forget, evaluation) if model else Path()
        samplers = f"{evaluation.main_sampler} and {evaluation.second_sampler}"
        channels, side, _ = self.dataset.image_shape
        megabytes = images * channels * side * side / 1e6
        some = evaluation.retain_classes not in (panel_classes.AUTO, panel_classes.ALL)
        retained = panel_classes.labels(evaluation.retain_classes, self.dataset.class_names, self.forget)
        of_some = f" of {len(self.forget) + len(retained)} classes" if some else ""
        does = f"draw and measure {images:,} images{of_some} by {samplers}"
        return Stage(f"measure {whose}", does, self.rates.minutes(rows), megabytes, path.is_file())

    def gold(self, training: Training) -> Stage:
        """Return the training of a model that never sees the classes."""
        minutes = training.minutes or self.rates.minutes(0, training.steps * training.batch_size)
        does = f"train a model that never sees the classes: {_steps(training)}"
        return Stage("gold", does, minutes, self.model_megabytes)

    def gold_stages(self, options: GoldOptions, base: str | None, evaluation: Evaluation) -> list[Stage]:
        """Return the training of the gold model, where that is to be done, and its measurement; nothing without one.

        Args:
            options: which gold model.
            base: address of the base, whose evidence says how it was trained.
            evaluation: how many images it draws, and by which samplers.
        """
        training = options.untrained(self.diffusion, base, self.dataset, self.forget)
        if training is not None:
            return [self.gold(training), self.draw("gold", evaluation)]
        model = options.find(self.diffusion, base, self.dataset, self.forget, lambda: False)
        return [self.draw("gold", evaluation, model)] if model else []

    def attack(self, name: str, attack: Attack, samples: int, models: list[str]) -> Stage:
        """Return an attack on several models, which are named in words."""
        rows = attack_rows(attack, samples, self.dataset, self.forget, has_null=self.diffusion.has_null)
        minutes = len(models) * self.rates.minutes(rows.drawn, rows.trained)
        return Stage(name, f"attack {', '.join(models)}", minutes)

    def correct(self, correction: Correction, model: Diffusion | None = None) -> list[Stage]:
        """Return a whole correction: judges, unlearning, and the measurement of both models.

        Args:
            correction: what would be done.
            model: the model to correct, where it exists already.
        """
        return [
            *self.judges(correction.judging),
            *self.unlearn(correction.method_name, correction.method, correction.training),
            self.draw("base", correction.evaluation, model),
            self.draw("corrected", correction.evaluation),
            self.register("candidate"),
        ]

    def register(self, alias: str) -> Stage:
        """Return the registration of a version."""
        return Stage("register", f"a version with the alias {alias}", 0.05, self.model_megabytes)


def logs_of(correction: Correction) -> str:
    """Return what a correction leaves in MLflow, in words."""
    return (
        f"a run in the experiment {correction.name}, with losses, pictures and metrics; the next version of {correction.name}, "
        "with its evidence and the alias candidate."
    )


def _steps(training: Training) -> str:
    if training.minutes:
        return f"{training.minutes:g} minutes of steps of {training.batch_size} rows"
    return f"{training.steps:,} steps of {training.batch_size} rows"
