"""What a comparison is made of, one job at a time: a correction that registers nothing, a gold model, a prior, a base's samples.

`python -m pipelines.comparison.job` is a worker of pipelines.engine.worker_pool: the task and the jobs come in on stdin.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from pipelines import tracking
from pipelines.cli.options import DataOptions
from pipelines.correction.correction import Correction, run_unregistered
from pipelines.correction.retrained import GoldOptions
from pipelines.engine.signals import StopSignal, die_with_parent, stop_on_sigterm
from pipelines.engine.worker_pool import Channel
from safemax.data.dataset import Dataset
from safemax.diffusion.model import Diffusion
from safemax.errors import InputError, NonFiniteError, Stopped
from safemax.evaluation.measure import Evaluation, Samples, cached_samples, measure
from safemax.judges.load import JudgeConfig, identity, judges, reference
from safemax.methods import create
from safemax.storage import cache, source_digest
from safemax.training.trainer import Training, accelerate, fit

STRIP, OTHERS = 5, 2  # images in a strip of the forgotten class, and after them of each other class
KIND, DIGEST = "comparison.child", "comparison.digest"  # tags
_HOW = ("checkpoint_every",)  # of a training: what decides nothing


@dataclass(frozen=True)
class ChildConfig:
    """What all jobs of a comparison share: plain JSON, since it reaches a worker as text.

    Args:
        data: source of the real images, and the side they are resized to (0 keeps theirs).
        size: see data.
        base: folder of the model to correct.
        source: its address.
        name: experiment.
        parent: id of the run that the children belong to.
        evaluation: of safemax.evaluation.Evaluation.
        judging: of safemax.judges.load.JudgeConfig.
        gold_steps: of pipelines.correction.retrained.GoldOptions.
        device: of safemax.training.trainer.Training.
    """

    data: str
    size: int
    base: str
    source: str
    name: str
    parent: str
    evaluation: dict[str, Any]
    judging: dict[str, Any]
    gold_steps: int
    device: str

    def correction(self, dataset: Dataset, job: Mapping[str, Any]) -> Correction:
        """Return a job's correction: its variant's, of its class, with its seed."""
        about = job["variant"]
        training = replace(Training(**about["training"]), seed=job["seed"])
        return Correction(
            dataset, (job["forget"],), self.source, self.name, about["name"], create(about["name"], **about["knobs"]),
            training, Evaluation(**self.evaluation), JudgeConfig(**self.judging), previews=0,
        )  # fmt: skip

    def digest(self, dataset: Dataset, job: Mapping[str, Any], model: str) -> str:
        """Return what names a job's result by all that decides it, code and judges included; not the machine."""
        facts: dict[str, Any] = {"model": model, "data": dataset.digest, "forget": job["forget"], "kind": job["kind"]}
        judging = JudgeConfig(**self.judging)
        facts |= {"evaluation": Evaluation(**self.evaluation).describe(), "judges": identity(dataset, judging)}
        facts |= {"inception": judging.inception, "measuring": source_digest.digest("safemax.evaluation.measure")}
        facts |= {"second_samples": self.evaluation["second_samples"]}
        if job["kind"] == "gold":
            return cache.key({**facts, "source": self.source, "steps": self.gold_steps})
        correction = self.correction(dataset, job)
        training = {name: value for name, value in asdict(correction.training).items() if name not in _HOW}
        own = {"method": job["variant"]["knobs"], "name": correction.method_name, "train": training}
        return cache.key(
            {
                **facts,
                **own,
                "code": source_digest.digest("safemax.training.trainer", type(correction.method).__module__),
            }
        )


class ChildContext:
    """What a process loads once, to do jobs on: data, judges, reference features; it makes what the caches lack."""

    def __init__(self, task: ChildConfig, stop: StopSignal) -> None:
        self.task, self.stop = task, stop
        self.dataset = DataOptions(task.data, task.size).load()
        self.evaluation, judging = Evaluation(**task.evaluation), JudgeConfig(**task.judging)
        self.device = str(accelerate(Training(device=task.device)).device)
        with stop.interruptible():
            self.judges = judges(self.dataset, judging, device=self.device)
            self.reference = reference(self.dataset, self.judges)

    def do(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """Do a job and return what came of it, with its minutes."""
        started = time.perf_counter()
        work = {"base": self._base, "prior": self._prior, "gold": self._gold, "child": self._child}[job["kind"]]
        return {**work(job), "minutes": (time.perf_counter() - started) / 60}

    def _base(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """Draw what the base is measured by, for the cache."""
        with self.stop.interruptible():
            cached_samples(Diffusion.load(self.task.base).to(self.device), (job["forget"],), self.evaluation)
        return {}

    def _prior(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """Prepare a method that serves every forget class alike, for the cache."""
        asked = self.task.correction(self.dataset, job)
        with self.stop.interruptible():
            result = fit(
                Diffusion.load(self.task.base), asked.method, self.dataset.train, asked.forget,
                replace(asked.training, steps=0), flip=self.dataset.natural, priors=cache.folder("priors"), progress=False,
            )  # fmt: skip
        return {"setup_minutes": result.cost.setup_minutes}

    def _gold(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """Train a model that never sees the class, or find it, and measure it in a run of its own."""
        task, forget = self.task, (job["forget"],)
        name = self.dataset.class_names[job["forget"]]
        params = {"gold.steps": task.gold_steps, "data.name": self.dataset.name, "data.forget": name}
        params |= {f"eval.{key}": value for key, value in self.evaluation.describe().items()}
        tags = {**self._tags(job, "gold"), "unlearning.method": "retrain"}
        run_name = f"gold-{self.dataset.name}-forget{name}"
        with tracking.run(run_name, experiment=task.name, params=params, tags=tags, parent=task.parent) as run:
            like = Diffusion.load(task.base)
            gold = GoldOptions("train", task.gold_steps).find(like, task.source, self.dataset, forget, self.stop)
            assert gold is not None
            with self.stop.interruptible():
                samples = cached_samples(gold, forget, self.evaluation)
                metrics = measure(samples, self.judges, self.reference, forget)
            run.log(metrics)
            _keep(run, {"corrected": samples}, job["forget"])
        return {"run": run.id}

    def _child(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """Correct the base as pipelines/correction.py does, in a run of its own, and register nothing."""
        task, label, asked = self.task, job["variant"]["label"], self.task.correction(self.dataset, job)
        run_name = f"{label}-{self.dataset.name}-forget{asked.class_names[0]}-seed{job['seed']}"
        tags = {**self._tags(job, label), "unlearning.method": asked.method_name}
        with tracking.run(run_name, experiment=task.name, params=asked.params(), tags=tags, parent=task.parent) as run:
            run.dataset(self.dataset, "training")
            outcome = run_unregistered(asked, run, task.base, self.stop)
            _keep(run, {"base": outcome.base, "corrected": outcome.corrected}, job["forget"])
        return {"run": run.id, "ua_reject": outcome.after["forget/ua_reject"], "fid": outcome.after["retain/fid_judge"]}

    def _tags(self, job: Mapping[str, Any], label: str) -> dict[str, str]:
        return {
            "kind": KIND,
            DIGEST: job["digest"],
            "comparison.variant": label,
            "comparison.seed": str(job["seed"]),
            "unlearning.forget": self.dataset.class_names[job["forget"]],
        }


def attempt(bench: ChildContext, job: Mapping[str, Any]) -> dict[str, Any]:
    """Do a job; return {"kind": "done", ...} or, where only this job is lost, {"kind": "failed", "reason": ...}."""
    try:
        return {"kind": "done", **bench.do(job)}
    except Stopped:
        raise
    except (InputError, NonFiniteError) as error:
        return {"kind": "failed", "reason": f"{type(error).__name__}: {error}"}
    except Exception as error:  # one out of memory, or with a fault of ours, must not take the comparison with it
        traceback.print_exc()
        return {"kind": "failed", "reason": f"{type(error).__name__}: {error}"}


def _keep(run: tracking.Run, drawn: Mapping[str, Samples], forget: int) -> None:
    """Keep the first images of each model, pixel for pixel, for the pictures of the comparison."""
    with tempfile.TemporaryDirectory() as scratch:
        for name, samples in drawn.items():
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


def main() -> None:
    """Serve the coordinator on stdin and stdout."""
    stop = stop_on_sigterm()
    die_with_parent()
    torch.set_num_threads(1)
    channel = Channel.own()
    try:
        _serve(channel, stop)
    except (Stopped, KeyboardInterrupt, BrokenPipeError):
        sys.stderr.flush()
        os._exit(143)  # nothing is left to write, and a broken stdout would complain


def _serve(channel: Channel, stop: StopSignal) -> None:
    task = channel.receive()
    if task is None:
        return
    try:
        bench = ChildContext(ChildConfig(**task), stop)
    except InputError as error:
        channel.send("refused", reason=str(error))
        return
    channel.send("ready")
    while (job := channel.receive()) is not None:
        channel.send(**attempt(bench, job))


if __name__ == "__main__":
    main()
