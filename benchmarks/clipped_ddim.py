"""What corrections of digits keep under diffusers' DDIM as it comes, which clips x0 and keeps the noise: by method and weight.

python -m benchmarks.clipped_ddim --classes=0,8             a correction of each variant and class; two minutes each on a core
python -m benchmarks.clipped_ddim --classes=0,8 --seeds=3   three corrections of each
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pandas as pd
import torch

from benchmarks import tables
from benchmarks.corrections import base_of, source
from pipelines.cli.parser import main, parse
from safemax.data.batches import to_float, to_uint8
from safemax.data.dataset import Dataset
from safemax.data.sources import load
from safemax.diffusion.model import Diffusion
from safemax.diffusion.sampling import FAST, USERS, Sampler, sample
from safemax.errors import InputError
from safemax.judges.classifier import Judge, predict
from safemax.judges.config import JudgeConfig
from safemax.judges.load import judges
from safemax.knobs import check, knob
from safemax.methods import create
from safemax.storage import atomic, cache
from safemax.training.hooks import Hooks
from safemax.training.settings import Training
from safemax.training.trainer import Trainer

SAMPLERS = {"protocol": FAST, "clipped": USERS["clipped"]}
SEED = 0  # of the samples: base and corrected models start from identical noise
TITLE = "What corrections of digits keep under diffusers' clipped DDIM"
REMARK = """\
accuracy: retained classes' samples that the ensemble of judges recognises as what they were drawn for, in percent, under the \
protocol's sampler ({protocol}) and under diffusers' as it comes ({clipped}), {images} images of each class; loss: points that the \
base has and the correction has not, of all retained classes and of the one that loses most. recognised: the forgotten class's. \
minutes: of the correction's training, on a machine with other work. Base and trainings are the demo's but for what is said; \
retain_weight is 3.072 by default."""


@dataclass(frozen=True)
class Variant:
    """A way to correct.

    Args:
        method: its name.
        knobs: that differ from its defaults.
        training: that differs from its defaults.
    """

    method: str
    knobs: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)


DEMO = {"steps": 300, "ema": 0.98}
VARIANTS = {
    "safemax": Variant("safemax", training=DEMO),
    "safemax, retain_weight = 30": Variant("safemax", {"retain_weight": 30.0}, DEMO),
    "safemax, retain_weight = 100": Variant("safemax", {"retain_weight": 100.0}, DEMO),
    "expected_targets, 150 steps": Variant("expected_targets", training={"steps": 150, "ema": 0.95}),
}


@dataclass(frozen=True)
class Extent:
    """How much of the benchmark to run."""

    classes: str = knob("0,8", "labels of the classes to forget, each in corrections of its own; by commas")
    seeds: int = knob(1, "corrections of each variant and class", bounds=(1, 100))
    images: int = knob(100, "samples of each class and sampler", bounds=(10, 10_000))

    def __post_init__(self) -> None:
        check(self)
        if any(each not in map(str, range(10)) for each in self.classes.split(",")):
            raise InputError(f"classes = {self.classes!r} is not allowed; labels from 0 to 9, separated by commas, are")

    @property
    def labels(self) -> list[int]:
        """The classes."""
        return [int(each) for each in self.classes.split(",")]


def rows(dataset: Dataset, extent: Extent) -> Iterator[dict[str, Any]]:
    """Yield a row per variant, class and seed."""
    judge = judges(dataset, JudgeConfig()).reject
    before = _kept("base", {"images": extent.images}, lambda: shares(base_of(dataset), judge, extent.images))
    for name, variant in VARIANTS.items():
        for label in extent.labels:
            for seed in range(extent.seeds):
                yield {"variant": name, "class": label, "seed": seed} | _row(
                    dataset, judge, variant, label, seed, before
                )


def _row(
    dataset: Dataset, judge: Judge, variant: Variant, label: int, seed: int, before: dict[str, Any]
) -> dict[str, Any]:
    images = len(before["protocol"][0])

    def make() -> dict[str, Any]:
        diffusion = base_of(dataset)
        training = Training(seed=seed, device="cpu", checkpoint_every=0, **variant.training)
        method = create(variant.method, **variant.knobs)
        started = time.perf_counter()
        Trainer(diffusion, method, dataset.train, (label,), training, hooks=Hooks(progress=False)).fit()
        minutes = (time.perf_counter() - started) / 60
        return shares(diffusion, judge, images) | {"minutes": minutes}

    after = _kept("corrected", {**asdict(variant), "class": label, "seed": seed, "images": images}, make)
    row: dict[str, Any] = {}
    for name in SAMPLERS:
        kept = {k: [100 * sum(each[name][k]) / images for each in (before, after)] for k in range(dataset.num_classes)}
        retained = [each for k, each in kept.items() if k != label]
        row[f"accuracy base, {name}"], row[f"accuracy, {name}"] = (
            sum(each) / len(each) for each in zip(*retained, strict=True)
        )
        row[f"loss, {name}"] = row[f"accuracy base, {name}"] - row[f"accuracy, {name}"]
        row[f"worst class's loss, {name}"] = max(a - b for a, b in retained)
        row[f"recognised, {name}"] = kept[label][1]
    return row | {"minutes": after["minutes"]}


def shares(diffusion: Diffusion, judge: Judge, images: int) -> dict[str, list[list[bool]]]:
    """Return by sampler and label which samples the judge recognises as the class that they were drawn for."""
    return {name: _recognised(diffusion, judge, sampler, images) for name, sampler in SAMPLERS.items()}


def _recognised(diffusion: Diffusion, judge: Judge, sampler: Sampler, images: int) -> list[list[bool]]:
    labels = torch.arange(diffusion.num_classes).repeat_interleave(images)
    drawn = to_float(to_uint8(sample(diffusion, labels, sampler, seed=SEED)))
    return (predict(judge, drawn)[0].argmax(1) == labels).view(-1, images).tolist()


def _kept(what: str, facts: dict[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    path = cache.folder("rows") / f"clipped-ddim-{what}-{cache.key({'source': source(), **facts})}.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_bytes(path, json.dumps(make()).encode())
    return json.loads(path.read_text())


def means(frame: pd.DataFrame) -> Iterator[str]:
    """Yield a line per variant: its means over classes and seeds."""
    for name, some in frame.groupby("variant", sort=False):
        mean = some.mean(numeric_only=True)
        yield (
            f"- {name}: loss {mean['loss, protocol']:.1f} points under the protocol's sampler, {mean['loss, clipped']:.1f} under "
            f"the clipped one; recognised {mean['recognised, protocol']:.1f} and {mean['recognised, clipped']:.1f} %."
        )


def benchmark(argv: Sequence[str]) -> None:
    """Run and write the table."""
    extent = parse("python -m benchmarks.clipped_ddim", __doc__ or "", {"extent": Extent}, argv)["extent"]
    torch.set_num_threads(1)
    frame = pd.DataFrame(rows(load("digits"), extent))
    remark = REMARK.format(**{name: str(each) for name, each in SAMPLERS.items()}, images=extent.images)
    tables.write(
        "clipped-ddim-digits", TITLE, frame.set_index("variant"), "\n".join([*means(frame), "", remark]), digits=2
    )


if __name__ == "__main__":
    main(benchmark)
