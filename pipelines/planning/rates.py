"""How fast this machine is: seconds that a row takes to draw and to train, measured once for a network and kept.

A row that is drawn is one forward pass of one image. A row that is trained is a forward and a backward pass and its share of the
optimizer's step, by the trainer itself, on the real images. On a CPU the clock is that of this thread's computing, which leads
every parallel part: other work on the machine would make a rate that is kept wrong from then on.
"""

from __future__ import annotations

import copy
import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from safemax.data.dataset import Dataset
from safemax.diffusion.model import Diffusion
from safemax.judges.classifier import Judge
from safemax.judges.none_head import train_none_heads
from safemax.judges.train import train_judge
from safemax.methods.finetune import Finetune
from safemax.storage import atomic, cache
from safemax.training.hooks import Hooks
from safemax.training.settings import Training
from safemax.training.trainer import Trainer

_PROBE = 4  # rows of the first, short measurement
_SECONDS = 0.3  # that the second may take


@dataclass(frozen=True)
class Rates:
    """Seconds a row on this machine.

    Args:
        drawn: of a forward pass.
        trained: of a training step.
    """

    drawn: float
    trained: float

    def minutes(self, drawn: float, trained: float = 0.0) -> float:
        """Return how long so many rows take."""
        return (drawn * self.drawn + trained * self.trained) / 60


def rates(diffusion: Diffusion, dataset: Dataset, training: Training) -> Rates:
    """Return the rates of a network on these images, from the file of an earlier measurement where there is one."""
    config = {name: value for name, value in dict(diffusion.denoiser.config).items() if not name.startswith("_")}
    settings = {"precision": training.precision, "device": training.device, "rows": training.batch_size}
    facts = {"network": config, "images": dataset.image_shape, **settings, **machine()}
    return Rates(**kept(facts, lambda: asdict(_measure(diffusion, dataset, training))))


def judge_seconds(dataset: Dataset, arch: str, *, reject: bool) -> float:
    """Return the seconds of a training step of a judge on this machine; measured once, then kept."""
    facts = {"judge": arch, "reject": reject, "images": dataset.image_shape, "natural": dataset.natural, **machine()}

    def train(steps: int) -> object:
        return train_judge(dataset, arch, reject=reject, steps=steps, progress=False)

    def measure() -> dict[str, float]:
        few, more = _spent(partial(train, 1)), _spent(partial(train, 4))
        return {"step": max(0.0, more - few) / 3}

    return kept(facts, measure)["step"]


def none_head_seconds(dataset: Dataset, arch: str, body: Judge | None) -> float:
    """Return the seconds of a batch that a none head learns from on this machine; measured once, then kept.

    Args:
        dataset: the images.
        arch: of the judge that gets the head.
        body: that judge; None where there is none yet: one that was trained for a step takes its place.
    """
    facts = {"none head of": arch, "images": dataset.image_shape, "classes": dataset.num_classes, **machine()}

    def measure() -> dict[str, float]:
        plain = body or train_judge(dataset, arch, reject=False, steps=1, progress=False)
        heads = partial(train_none_heads, plain, dataset, progress=False)
        few, more = _spent(partial(heads, draws=1)), _spent(partial(heads, draws=4))
        return {"draw": max(0.0, more - few) / 3}

    return kept(facts, measure)["draw"]


def machine() -> dict[str, Any]:
    """Return what the rates depend on besides the network: processor, threads, GPU and torch."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    cores = {"cores": os.cpu_count(), "threads": torch.get_num_threads()}
    return {"processor": _processor(), "gpu": gpu, "torch": torch.__version__, **cores}


def _processor() -> str:
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.exists() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def kept(facts: Mapping[str, Any], measure: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Return numbers by name from the file of an earlier measurement of the same facts, else measure and keep them."""
    path = cache.folder("rates") / f"{cache.key(facts)}.json"
    if not path.exists():
        with torch.random.fork_rng(devices=[]):
            measured = measure()
        atomic.write_bytes(path, json.dumps({**measured, "measured": facts}, indent=1, default=str).encode())
    content = json.loads(path.read_text(encoding="utf-8"))
    return {name: value for name, value in content.items() if name != "measured"}


def _measure(diffusion: Diffusion, dataset: Dataset, training: Training) -> Rates:
    brief = _seconds(_step(diffusion, dataset, training, _PROBE), 0.0)
    rows = max(_PROBE, min(training.batch_size, int(_PROBE * _SECONDS / brief)))
    trained = _seconds(_step(diffusion, dataset, training, rows), _SECONDS) / rows
    return Rates(_seconds(_forward(diffusion, rows), _SECONDS) / rows, trained)


def _step(diffusion: Diffusion, dataset: Dataset, training: Training, rows: int) -> Callable[[], object]:
    """Return a training step of the plainest method on a copy of the model."""
    plain = replace(training, steps=1000, minutes=0.0, batch_size=rows, forget_share=0.0, accumulate=1, compile="none")
    method = Finetune(null_drop=0.1 if diffusion.has_null else 0.0)
    hooks = Hooks(progress=False)
    trainer = Trainer(copy.deepcopy(diffusion), method, dataset.train, (), plain, flip=dataset.natural, hooks=hooks)
    trainer.prepare()
    return trainer.step


def _forward(diffusion: Diffusion, rows: int) -> Callable[[], object]:
    """Return a forward pass of a copy of the model, on the device that the trainer uses."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    twin = copy.deepcopy(diffusion).to(device).eval()
    x_t = torch.randn(rows, *diffusion.x0_shape, device=device)
    t, c = (torch.zeros(rows, dtype=torch.int64, device=device) for _ in range(2))

    def call() -> object:
        with torch.no_grad():
            return twin(x_t, t, c)

    return call


def _seconds(call: Callable[[], object], budget: float) -> float:
    """Return the seconds of a call, the mean of as many as a budget of seconds allows, after one that does not count."""
    call()
    started, calls = _clock(), 0
    while not calls or _clock() - started < budget:
        call()
        calls += 1
    return (_clock() - started) / calls


def _spent(work: Callable[[], object]) -> float:
    """Return the seconds of a call."""
    started = _clock()
    work()
    return _clock() - started


def _clock() -> float:
    """Return seconds: on a GPU of the wall, once it is done; on a CPU of this thread's computing."""
    if not torch.cuda.is_available():
        return time.thread_time()
    torch.cuda.synchronize()
    return time.perf_counter()
