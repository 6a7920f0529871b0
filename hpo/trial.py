"""One trial of a search: unlearn with the trial's values and measure, on what a worker loads once.

A worker never opens the study's storage, nor MLflow's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from hpo.probe import Probe
from pipelines.cli.options import DataOptions
from pipelines.engine.signals import StopSignal
from pipelines.engine.worker import REPORT, Message, Pruned, Send
from safemax import metric_keys as keys
from safemax.data.batches import derive_seed, to_float
from safemax.data.class_split import ClassSplit
from safemax.diffusion.model import Diffusion
from safemax.evaluation.measure import measure
from safemax.evaluation.protocol import Evaluation
from safemax.evaluation.samples import SHOWN_PER_CLASS, Samples, cached_samples, draw
from safemax.judges.config import JudgeConfig
from safemax.judges.load import judges
from safemax.judges.reference import reference
from safemax.methods import create
from safemax.reports.images_and_tables import grid
from safemax.storage import cache, checkpoint
from safemax.storage.checkpoint import Checkpoint
from safemax.training.devices import accelerator_for
from safemax.training.hooks import Folders, Hooks
from safemax.training.settings import Training
from safemax.training.trainer import Trainer

CHECKS = (50, 75)  # percent of a trial's steps at which it may be pruned; earlier, a large lr has not settled


@dataclass(frozen=True)
class TrialConfig:
    """What all trials of a search share: plain JSON, since it is sent to workers as text.

    Args:
        data: fields of pipelines.cli.options.DataOptions.
        base: folder of the model to correct.
        forget: labels to forget.
        forgotten: names of all classes that the model to correct has forgotten so far.
        method: name of the method.
        knobs: the values of the method's knobs, by field; a trial changes those that are searched.
        training: likewise, of safemax.training.settings.Training.
        evaluation: of safemax.evaluation.Evaluation; the same seeds for every trial (common random numbers).
        judging: of safemax.judges.config.JudgeConfig.
        folder: where trials keep their checkpoints, weights and pictures.
        prune: whether trials report on the way and may be pruned.
    """

    data: dict[str, Any]
    base: str
    forget: list[int]
    forgotten: list[str]
    method: str
    knobs: dict[str, Any]
    training: dict[str, Any]
    evaluation: dict[str, Any]
    judging: dict[str, Any]
    folder: str
    prune: bool = True

    def trial_folder(self, number: int, values: Mapping[str, Any]) -> Path:
        """Return a trial's folder; its values are in the name because a study of the same name may be started afresh."""
        return Path(self.folder) / f"trial-{number:04d}-{cache.key(values)[:8]}"


class TrialContext:
    """What a worker loads once to run trials with: data, base model, judges, reference statistics."""

    def __init__(self, config: TrialConfig, stop: StopSignal) -> None:
        self.config, self.stop = config, stop
        dataset = DataOptions(**config.data).load(quiet=True)
        self.classes = ClassSplit.of(dataset.class_names, config.forget, config.forgotten)
        self.dataset = replace(dataset, train=self.classes.counted(dataset.train))
        self.evaluation = Evaluation(**config.evaluation)
        device = accelerator_for(Training(**config.training)).device
        self.diffusion = Diffusion.load(config.base).to(device)
        self.start = {name: value.clone() for name, value in self.diffusion.denoiser.state_dict().items()}
        self.judges = judges(dataset, JudgeConfig(**config.judging), device=str(device), progress=False)
        self.reference = self.classes.counted(reference(dataset, self.judges))
        self.probe = (
            Probe(self.diffusion, self.dataset, config.forget, self.evaluation.evaluation_seed)
            if config.prune
            else None
        )
        self.base = self.measure_base(self.evaluation)

    @property
    def greeting(self) -> Message:
        """The metrics of the model to correct."""
        return {"base": self.base}

    def do(self, job: Message, send: Send) -> Message:
        """Do a job and return its metrics.

        Args:
            job: kind trial (number, values by field), measure_again (the same, and an evaluation's fields), or base (an
                evaluation's fields).
            send: see `trial`.
        """
        if job["kind"] == "trial":
            return {"metrics": self.trial(job["number"], job["values"], send)}
        evaluation = Evaluation(**job["evaluation"])
        if job["kind"] == "base":
            return {"metrics": self.measure_base(evaluation)}
        return {"metrics": self.measure_again(job["number"], job["values"], evaluation)}

    def measure_base(self, evaluation: Evaluation) -> dict[str, float]:
        """Return the metrics of the model to correct; its samples are cached."""
        self._load(self.start)
        return self._measure_cached(evaluation)

    def trial(self, number: int, values: Mapping[str, Any], send: Send) -> dict[str, float]:
        """Unlearn with a trial's values and measure; weights and a picture stay in its folder.

        Args:
            number: the trial's.
            values: the searched knobs, by field.
            send: gets log messages (metrics, step) and reports (percent of the steps, knowledge, damage).

        Raises:
            Pruned: a report was answered with yes.
            InputError, NonFiniteError, Stopped: as safemax.training.trainer.Trainer.fit.
        """
        folder = self.config.trial_folder(number, values)
        cost = self._unlearn(folder, values, send)
        started = time.perf_counter()
        with self.stop.interruptible():
            samples = draw(self.diffusion, self.classes.forget, self.evaluation, shown=1, progress=False)
            metrics = self._measure(samples) | cost
        _picture(samples, self.classes.forget).save(folder / "samples.png")
        metrics[keys.EVALUATION_MINUTES] = (time.perf_counter() - started) / 60
        self._save_weights(folder)
        return metrics

    def measure_again(self, number: int, values: Mapping[str, Any], evaluation: Evaluation) -> dict[str, float]:
        """Measure a finished trial by another evaluation; where its weights are missing, unlearn again."""
        folder = self.config.trial_folder(number, values)
        saved = checkpoint.newest(folder / "weights")
        if saved is None:
            self._unlearn(folder, values, None)
            self._save_weights(folder)
        else:
            self._load({name: value.to(self.diffusion.device) for name, value in saved.tensors.items()})
        return self._measure_cached(evaluation)

    def _measure_cached(self, evaluation: Evaluation) -> dict[str, float]:
        with self.stop.interruptible():
            return self._measure(cached_samples(self.diffusion, self.classes.forget, evaluation, progress=False))

    def _unlearn(self, folder: Path, values: Mapping[str, Any], send: Send | None) -> dict[str, float]:
        config = self.config
        training = replace(Training(**config.training), **{k: v for k, v in values.items() if k in config.training})
        method = create(config.method, **config.knobs | {k: v for k, v in values.items() if k in config.knobs})

        def log(metrics: dict[str, float], step: int) -> None:
            if send:
                send({"kind": "log", "metrics": metrics, "step": step})

        self._load(self.start)
        checks = self._checks(training.steps, send) if send and self.probe else None
        result = Trainer(
            self.diffusion, method, self.dataset.train, self.classes.forget, training,
            flip=self.dataset.natural, hooks=Hooks(log, checks, self.stop, progress=False),
            folders=Folders(folder / "steps", cache.folder("priors")),
        ).fit()  # fmt: skip
        return result.cost.metrics() | {f"prior/{name}": value for name, value in method.facts().items()}

    def _checks(self, steps: int, send: Send) -> Callable[[int], None]:
        """Return what to call after each step: it reports at CHECKS, and raises Pruned where the answer is yes."""
        percents = {round(steps * percent / 100): percent for percent in CHECKS}

        def check(step: int) -> None:
            if step not in percents or step == steps or not self.probe:
                return
            knowledge, damage = self.probe(self.diffusion)
            if send({"kind": REPORT, "percent": percents[step], "knowledge": knowledge, "damage": damage}):
                raise Pruned

        return check

    def _save_weights(self, folder: Path) -> None:
        weights = {name: value.cpu().contiguous() for name, value in self.diffusion.denoiser.state_dict().items()}
        checkpoint.clear(folder / "weights")  # on a GPU, a trial that is run again may end with other bytes
        checkpoint.write(folder / "weights", Checkpoint(0, weights, {}))
        checkpoint.clear(folder / "steps")

    def _load(self, weights: Mapping[str, Tensor]) -> None:
        self.diffusion.denoiser.load_state_dict(weights)

    def _measure(self, samples: Samples) -> dict[str, float]:
        return measure(self.classes.counted(samples), self.judges, self.reference, self.classes.forget)


def weights_of(config: TrialConfig, number: int, values: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the weights that a trial with these values, by field, ended with; KeyError where this machine has none."""
    saved = checkpoint.newest(config.trial_folder(number, values) / "weights")
    if saved is None:
        raise KeyError(number)
    return saved.tensors


def final_evaluation(evaluation: Evaluation, times: int) -> Evaluation:
    """Return an evaluation with so many times the samples, on seeds that no trial saw."""
    forget, retain = evaluation.counts
    return replace(
        evaluation,
        forget_samples=forget * times,
        retain_samples=retain * times,
        evaluation_seed=derive_seed(evaluation.evaluation_seed, 1) >> 1,
    )


def _picture(samples: Samples, forget: tuple[int, ...]) -> Image.Image:
    """Return the forgotten classes' first images in the upper rows, then one row per retained class."""
    order = [*forget, *(k for k in samples.labels.unique().tolist() if k not in forget)]
    return grid(
        to_float(torch.cat([samples.images[samples.labels == k][:SHOWN_PER_CLASS] for k in order])), SHOWN_PER_CLASS
    )


def load(config: Message, stop: StopSignal) -> TrialContext:
    """Return the context of a worker."""
    return TrialContext(TrialConfig(**config), stop)
