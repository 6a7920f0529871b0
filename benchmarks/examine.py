"""The time to examine a corrected digits model with the fast panel and six attacks, once all caches are filled.

python -m benchmarks.examine
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import pandas as pd

from benchmarks import tables
from benchmarks.corrections import base_of
from pipelines.correction.base_model import BaseTraining, NetworkOptions
from safemax import attacks
from safemax.attacks.base import Setting
from safemax.data.dataset import Dataset
from safemax.data.sources import load
from safemax.diffusion.model import Diffusion
from safemax.evaluation.measure import measure
from safemax.evaluation.protocol import Evaluation
from safemax.evaluation.samples import cached_samples, draw
from safemax.judges.config import JudgeConfig
from safemax.judges.load import judges
from safemax.judges.reference import reference
from safemax.methods import create
from safemax.metrics.retention import neighbours
from safemax.storage import cache
from safemax.training.method import Method
from safemax.training.settings import Training
from safemax.training.trainer import Trainer

FORGET = 8
PANEL = Evaluation(forget_samples=300, retain_samples=50)
SAMPLES = 80  # of a trial of an attack
LIMITS = {"panel": 30, "attacks": 240}  # seconds that the documentation promises on two cores


def trained(start: Diffusion, method: Method, dataset: Dataset, forget: int, training: Training) -> Diffusion:
    """Return a model after a training without or against a class, cached; `start` may be changed."""
    folder = cache.folder("examined") / cache.key({"start": start.digest(), "how": f"{method} {forget} {training}"})
    if not folder.exists():
        Trainer(start, method, dataset.train, (forget,), training).fit()
        start.save(folder)
    return Diffusion.load(folder)


def timed(seconds: dict[str, float], name: str, work: Callable[[], object]) -> None:
    """Record how long some work takes."""
    started = time.perf_counter()
    work()
    seconds[name] = time.perf_counter() - started
    print(f"{name}: {seconds[name]:.1f} s", flush=True)


def main() -> None:
    """Time both and write the table."""
    dataset = load("digits")
    base, base_training = base_of(dataset), BaseTraining(device="cpu")
    corrected = trained(
        base_of(dataset), create("safemax"), dataset, FORGET, Training(steps=300, device="cpu", checkpoint_every=0)
    )
    gold = trained(
        NetworkOptions().create(dataset, base_training.seed), create("retrain"), dataset, FORGET, base_training
    )
    judge_set = judges(dataset, JudgeConfig())
    real = reference(dataset, judge_set)
    cached_samples(base, (FORGET,), PANEL)
    seconds: dict[str, float] = {}

    def measure_both() -> None:
        samples = draw(corrected, (FORGET,), PANEL, progress=False)
        before = cached_samples(base, (FORGET,), PANEL)
        for each in (before, samples):
            measure(each, judge_set, real, (FORGET,))

    timed(seconds, "panel", measure_both)
    nearest = neighbours(real, (FORGET,))[0]
    setting = Setting(dataset, (FORGET,), judge_set.reject, judge_set.plain, nearest, base, SAMPLES)
    for name, attack in attacks.available().items():
        for role, diffusion in {"model": corrected, "base": base, "gold": gold}.items():
            timed(seconds, f"{name} on {role}", partial(attack().run, diffusion, setting))
    seconds["attacks"] = sum(each for name, each in seconds.items() if " on " in name)
    frame = pd.DataFrame({"seconds": seconds, "promised": LIMITS}).rename_axis("what").loc[[*seconds]]
    remark = (
        f"Panel: {PANEL.counts[0]} forget and {PANEL.counts[1]} images a retained class by {PANEL.main_sampler}, "
        f"{PANEL.second_samples} by {PANEL.second_sampler}, drawn; base and corrected measured. Attacks: {SAMPLES} images "
        "a trial. Models, judges, base samples and reference features were cached; results of attacks were not."
    )
    tables.write("examine", "Time to examine a corrected model of digits", frame, remark, digits=1)


if __name__ == "__main__":
    main()
