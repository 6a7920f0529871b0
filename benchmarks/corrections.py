"""One correction of the demo's base on digits, measured: a row of the tables, kept so that a stopped benchmark goes on."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cache as once
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import safemax
from pipelines.correction.base_model import BaseTraining, NetworkOptions
from safemax.data.dataset import Dataset
from safemax.data.sources import load
from safemax.diffusion.model import Diffusion
from safemax.evaluation.measure import Evaluation, cached_samples, measure
from safemax.judges.load import JudgeConfig, Judges, Reference, judges, reference
from safemax.methods import create
from safemax.methods.finetune import Finetune
from safemax.storage import cache
from safemax.training.trainer import Training, fit


@dataclass(frozen=True)
class Job:
    """A correction of one class and how it is measured; `seed` fixes the training and the samples, of base and corrected."""

    variant: str
    method: str
    forget: int
    knobs: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    forget_samples: int = 500
    retain_samples: int = 100
    with_base: bool = True

    @property
    def evaluation(self) -> Evaluation:
        """How base and corrected are sampled."""
        return Evaluation(
            forget_samples=self.forget_samples, retain_samples=self.retain_samples, evaluation_seed=self.seed
        )


def rows(jobs: Sequence[Job], workers: int) -> list[dict[str, Any]]:
    """Return a row a job, made by processes of one thread: two of them do on two cores twice the steps of one with two threads."""
    _settled()
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_one_thread) as pool:
        return list(tqdm(pool.map(row, jobs), total=len(jobs), desc="corrections", smoothing=0))


def row(job: Job) -> dict[str, Any]:
    """Correct the base and measure both from identical noise; kept by the job and the library's source."""
    path = cache.folder("rows") / f"{cache.key({'source': source(), **asdict(job)})}.json"
    if not path.exists():
        found = _row(job)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found))
    return json.loads(path.read_text())


def base_of(dataset: Dataset) -> Diffusion:
    """Return the demo's base model, trained once."""
    training = BaseTraining(device="cpu")
    diffusion = NetworkOptions().create(dataset, training.seed)
    folder = cache.folder("bases") / cache.key({"start": diffusion.digest(), "training": str(training)})
    if not folder.exists():
        fit(diffusion, Finetune(), dataset.train, (), training)
        diffusion.save(folder)
    return Diffusion.load(folder)


def _row(job: Job) -> dict[str, Any]:
    dataset, judged, real = _settled()

    def measured(diffusion: Diffusion) -> dict[str, float]:
        samples = cached_samples(diffusion, (job.forget,), job.evaluation, progress=False)
        return measure(samples, judged, real, (job.forget,))

    diffusion = base_of(dataset)
    training = Training(seed=job.seed, device="cpu", checkpoint_every=0, **job.training)
    method = create(job.method, **job.knobs)
    result = fit(diffusion, method, dataset.train, (job.forget,), training, progress=False)
    after = measured(diffusion)
    found = {
        "variant": job.variant,
        "class": dataset.class_names[job.forget],
        "seed": job.seed,
        "steps": training.steps,
        "recognised %": after["forget/recognised"],
        "recognised, 2nd sampler %": after["forget/second_recognised"],
        "accuracy": after["retain/accuracy"],
        "FID": after["retain/fid_judge"],
        "minutes": result.cost.runtime_minutes,
    }
    return found | _beside(after, measured(base_of(dataset))) if job.with_base else found


def _beside(after: dict[str, float], before: dict[str, float]) -> dict[str, float]:
    return {
        "accuracy base": before["retain/accuracy"],
        "FID base": before["retain/fid_judge"],
        "FID change %": 100 * (after["retain/fid_judge"] / before["retain/fid_judge"] - 1),
    }


@once
def _settled() -> tuple[Dataset, Judges, Reference]:
    dataset = load("digits")
    judged = judges(dataset, JudgeConfig())
    base_of(dataset)
    return dataset, judged, reference(dataset, judged)


@once
def source() -> str:
    """Return the sha256 (hex) of the library's source: what was kept by another one is measured anew."""
    sha = hashlib.sha256()
    for path in sorted(Path(safemax.__file__).parent.rglob("*.py")):
        sha.update(path.read_bytes())
    return sha.hexdigest()


def _one_thread() -> None:
    torch.set_num_threads(1)
