"""The jobs of a comparison: a correction that registers nothing, a gold model, a prior, the samples of a base.

A worker writes nothing to MLflow: it sends what a job's run is to get, and the process that opened the run writes it.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from PIL import Image

from pipelines import tracking
from pipelines.cli.options import DataOptions
from pipelines.correction.correct import run_unregistered
from pipelines.correction.correction import Correction
from pipelines.correction.retrained import GoldRecipe
from pipelines.engine.signals import StopSignal
from pipelines.engine.worker import Message, Send
from pipelines.tracking.remote_run import RemoteRun
from safemax import metric_keys as keys
from safemax.data.dataset import Dataset
from safemax.diffusion.model import Diffusion
from safemax.evaluation.measure import code_digest, measure
from safemax.evaluation.protocol import Evaluation
from safemax.evaluation.samples import Samples, cached_samples
from safemax.judges.config import JudgeConfig
from safemax.judges.load import identity, judges
from safemax.judges.reference import reference
from safemax.methods import create
from safemax.storage import cache, source_digest
from safemax.training.devices import accelerator_for
from safemax.training.hooks import Folders, Hooks
from safemax.training.settings import Training
from safemax.training.trainer import Trainer

STRIP, OTHERS = 5, 2  # images in a strip of the forgotten class, and then of each other class
_NOT_DECISIVE = ("checkpoint_every",)  # fields of a training that do not change its result


@dataclass(frozen=True)
class ChildConfig:
    """What all jobs of a comparison share: plain JSON, since it is sent to workers as text.

    Args:
        data: fields of pipelines.cli.options.DataOptions.
        base: folder of the model to correct.
        source: address of the model to correct.
        experiment: of the comparison.
        evaluation: fields of safemax.evaluation.Evaluation.
        judging: fields of safemax.judges.config.JudgeConfig.
        gold_steps: of pipelines.correction.retrained.GoldOptions.
        gold: fields of a GoldRecipe, those of its training as a dict.
        device: of safemax.training.settings.Training.
    """

    data: dict[str, Any]
    base: str
    source: str
    experiment: str
    evaluation: dict[str, Any]
    judging: dict[str, Any]
    gold_steps: int
    gold: dict[str, Any]
    device: str

    def correction(self, dataset: Dataset, job: Mapping[str, Any]) -> Correction:
        """Return a job's correction: its variant of a method, its class, its seed."""
        variant = job["variant"]
        training = replace(Training(**variant["training"]), seed=job["seed"])
        method = create(variant["name"], **variant["knobs"])
        return Correction(
            dataset, (job["forget"],), self.source, self.experiment, variant["name"], method,
            training, Evaluation(**self.evaluation), JudgeConfig(**self.judging), previews=0,
        )  # fmt: skip

    def digest(self, dataset: Dataset, job: Mapping[str, Any], model: str) -> str:
        """Return a digest of all that decides a job's result, code and judges included; the machine does not enter.

        Args:
            dataset: the real images.
            job: see `do`.
            model: digest of the model to correct.
        """
        facts: dict[str, Any] = {"model": model, "data": dataset.digest, "forget": job["forget"], "kind": job["kind"]}
        judging = JudgeConfig(**self.judging)
        facts |= {"evaluation": Evaluation(**self.evaluation).describe(), "judges": identity(dataset, judging)}
        facts |= {"inception": judging.inception, "measuring": code_digest()}
        facts |= {"second_samples": self.evaluation["second_samples"], **dataset.flip_facts}
        if job["kind"] == "gold":
            return cache.key({**facts, "source": self.source, "steps": self.gold_steps})
        correction = self.correction(dataset, job)
        training = {name: value for name, value in asdict(correction.training).items() if name not in _NOT_DECISIVE}
        facts |= {"method": job["variant"]["knobs"], "name": correction.method_name, "train": training}
        code = source_digest.digest("safemax.training.trainer", type(correction.method).__module__)
        return cache.key({**facts, "code": code})


class ChildContext:
    """What a process loads once to do jobs with: data, judges, reference features; it makes what the caches lack."""

    def __init__(self, config: ChildConfig, stop: StopSignal) -> None:
        self.config, self.stop = config, stop
        self.dataset = DataOptions(**config.data).load(quiet=True)
        self.evaluation, judging = Evaluation(**config.evaluation), JudgeConfig(**config.judging)
        self.device = str(accelerator_for(Training(device=config.device)).device)
        with stop.interruptible():
            self.judges = judges(self.dataset, judging, device=self.device)
            self.reference = reference(self.dataset, self.judges)

    @property
    def greeting(self) -> Message:
        """Nothing: the coordinator needs only know that the context is loaded."""
        return {}

    def do(self, job: Message, send: Send) -> Message:
        """Do a job and return its result, with its minutes.

        Args:
            job: kind (base, prior, gold or child), forget (label), seed; of prior and child variant
                (MethodVariant.describe), of gold and child digest (ChildConfig.digest) and run (its id).
            send: gets what the job's run is to get (pipelines.tracking.remote_run).
        """
        started = time.perf_counter()
        if job["kind"] in ("base", "prior"):
            result = self._base(job) if job["kind"] == "base" else self._prior(job)
        else:
            run = RemoteRun(job["run"], send)
            result = self._gold(job, run) if job["kind"] == "gold" else self._child(job, run)
        return {**result, "minutes": (time.perf_counter() - started) / 60}

    def _base(self, job: Message) -> Message:
        """Draw the base's samples into the cache."""
        with self.stop.interruptible():
            cached_samples(Diffusion.load(self.config.base).to(self.device), (job["forget"],), self.evaluation)
        return {}

    def _prior(self, job: Message) -> Message:
        """Prepare, into the cache, the prior of a method that is the same for every forget class."""
        correction = self.config.correction(self.dataset, job)
        with self.stop.interruptible():
            result = Trainer(
                Diffusion.load(self.config.base), correction.method, self.dataset.train, correction.forget,
                replace(correction.training, steps=0), flip=self.dataset.natural,
                hooks=Hooks(progress=False), folders=Folders(priors=cache.folder("priors")),
            ).fit()  # fmt: skip
        return {"setup_minutes": result.cost.setup_minutes}

    def _gold(self, job: Message, run: tracking.Run) -> Message:
        """Train a model that never sees the class, unless it is cached, and measure it."""
        forget, gold = (job["forget"],), self.config.gold
        recipe = GoldRecipe(**{**gold, "training": Training(**gold["training"])})
        model = recipe.make(Diffusion.load(self.config.base), self.dataset, forget, self.stop)
        with self.stop.interruptible():
            samples = cached_samples(model, forget, self.evaluation)
            metrics = measure(samples, self.judges, self.reference, forget)
        run.log(keys.charted(metrics))
        run.table(pd.DataFrame({"gold": metrics}).rename_axis("metric").reset_index(), "metrics")
        _log_strips(run, {"corrected": samples}, job["forget"])
        return {}

    def _child(self, job: Message, run: tracking.Run) -> Message:
        """Correct the base as `-e unlearn` does, but register nothing."""
        result = run_unregistered(self.config.correction(self.dataset, job), run, self.config.base, self.stop)
        _log_strips(run, {"base": result.base, "corrected": result.corrected}, job["forget"])
        return {"ua_reject": result.after[keys.UA_REJECT], "fid": result.after[keys.FID_JUDGE]}


def _log_strips(run: tracking.Run, models: Mapping[str, Samples], forget: int) -> None:
    """Log the first images of each model, pixel for pixel, for the pictures of the comparison."""
    with tempfile.TemporaryDirectory() as scratch:
        for name, samples in models.items():
            path = Path(scratch) / f"{name}.png"
            _strip(samples, forget).save(path)
            run.artifact(path, "strips")


def _strip(samples: Samples, forget: int) -> Image.Image:
    """Return a row of images: STRIP of the forgotten class, then OTHERS of each other class in order."""
    others = [k for k in samples.labels.unique().tolist() if k != forget]
    counts = {forget: STRIP, **dict.fromkeys(others, OTHERS)}
    images = torch.cat([samples.images[samples.labels == k][:n] for k, n in counts.items()])
    row = images.permute(2, 0, 3, 1).flatten(1, 2)  # H, N * W, C
    return Image.fromarray(row.squeeze(-1).numpy())


def load(config: Message, stop: StopSignal) -> ChildContext:
    """Return the context of a worker."""
    return ChildContext(ChildConfig(**config), stop)
