"""Corrections of the demo's base on digits, measured: one table row each, cached so that a stopped benchmark resumes."""

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
from safemax import metric_keys as keys
from safemax.data.dataset import Dataset
from safemax.data.sources import load
from safemax.diffusion.model import Diffusion
from safemax.evaluation.measure import measure
from safemax.evaluation.protocol import Evaluation
from safemax.evaluation.samples import cached_samples
from safemax.judges.config import JudgeConfig
from safemax.judges.load import Judges, judges
from safemax.judges.reference import Reference, reference
from safemax.methods import create
from safemax.methods.finetune import Finetune
from safemax.storage import cache
from safemax.training.hooks import Hooks
from safemax.training.settings import Training
from safemax.training.trainer import Trainer


@dataclass(frozen=True)
class MeasuredCorrection:
    """A correction of one class, and how it is measured; `seed` fixes the training, and the samples of base and corrected."""

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


def rows(corrections: Sequence[MeasuredCorrection], workers: int) -> list[dict[str, Any]]:
    """Return one row per correction, made by processes of one thread.

    On two cores, two such processes make twice the steps of one process with two threads.
    """
    _loaded()
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_one_thread) as pool:
        return list(tqdm(pool.map(row, corrections), total=len(corrections), desc="corrections", smoothing=0))


def row(correction: MeasuredCorrection) -> dict[str, Any]:
    """Correct the base and measure both from identical noise; cached by the correction and the library's source."""
    path = cache.folder("rows") / f"{cache.key({'source': source(), **asdict(correction)})}.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(_row(correction)))
    return json.loads(path.read_text())


def base_of(dataset: Dataset, seed: int = 0) -> Diffusion:
    """Return a base trained as the demo's, which is that of seed 0; each is trained once."""
    training = BaseTraining(device="cpu", seed=seed)
    diffusion = NetworkOptions().create(dataset, training.seed)
    folder = cache.folder("bases") / cache.key({"start": diffusion.digest(), "training": str(training)})
    if not folder.exists():
        Trainer(diffusion, Finetune(), dataset.train, (), training).fit()
        diffusion.save(folder)
    return Diffusion.load(folder)


def _row(correction: MeasuredCorrection) -> dict[str, Any]:
    dataset, loaded, real = _loaded()

    def metrics_of(diffusion: Diffusion) -> dict[str, float]:
        samples = cached_samples(diffusion, (correction.forget,), correction.evaluation, progress=False)
        return measure(samples, loaded, real, (correction.forget,))

    diffusion = base_of(dataset)
    training = Training(seed=correction.seed, device="cpu", checkpoint_every=0, **correction.training)
    method = create(correction.method, **correction.knobs)
    result = Trainer(
        diffusion, method, dataset.train, (correction.forget,), training, hooks=Hooks(progress=False)
    ).fit()
    after = metrics_of(diffusion)
    row = {
        "variant": correction.variant,
        "class": dataset.class_names[correction.forget],
        "seed": correction.seed,
        "steps": training.steps,
        "recognised %": after[keys.RECOGNISED],
        "recognised, 2nd sampler %": after[keys.SECOND_RECOGNISED],
        "accuracy": after[keys.ACCURACY],
        "FID": after[keys.FID_JUDGE],
        "minutes": result.cost.runtime_minutes,
    }
    return row | _compared_with_base(after, metrics_of(base_of(dataset))) if correction.with_base else row


def _compared_with_base(after: dict[str, float], before: dict[str, float]) -> dict[str, float]:
    return {
        "accuracy base": before[keys.ACCURACY],
        "FID base": before[keys.FID_JUDGE],
        "FID change %": 100 * (after[keys.FID_JUDGE] / before[keys.FID_JUDGE] - 1),
    }


@once
def _loaded() -> tuple[Dataset, Judges, Reference]:
    dataset = load("digits")
    loaded = judges(dataset, JudgeConfig())
    base_of(dataset)
    return dataset, loaded, reference(dataset, loaded)


@once
def source() -> str:
    """Return the sha256 (hex) of the library's source: rows that were cached by other source are measured anew."""
    sha = hashlib.sha256()
    for path in sorted(Path(safemax.__file__).parent.rglob("*.py")):
        sha.update(path.read_bytes())
    return sha.hexdigest()


def _one_thread() -> None:
    torch.set_num_threads(1)
