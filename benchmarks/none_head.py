"""A reject class by a small head on a frozen third-party network: what it costs in accuracy, what it catches, how long it takes.

python -m benchmarks.none_head                    CIFAR-10 and the networks in $SAFEMAX_DATA; minutes of one CPU thread
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from benchmarks import tables
from pipelines.cli.parser import main, parse
from safemax.data.batches import to_float
from safemax.data.dataset import Dataset
from safemax.data.sources import load
from safemax.judges.classifier import REJECT, Judge, load_judge, noise_histogram, predict
from safemax.judges.none_head import DRAWS, ROWS, train_none_head
from safemax.knobs import check, knob

SHOWN = ("bird", "cat", "deer")
REMARK = """\
accuracy: right answers among 10,000 real test images, a rejection counts as wrong; by class for the three that are hardest. \
real rejected: of the same images. Noise rejected: of 500 images each, clamped Gaussian, uniform, salt-and-pepper, and test \
images drowned in noise. The head sees {images} images, a third of them negatives. CPU s: of its training, all threads."""


@dataclass(frozen=True)
class Extent:
    """How much of the benchmark to run."""

    backbones: str = knob(
        "cifar10-resnet20", "files in $SAFEMAX_DATA/judges, without their ending, separated by commas"
    )
    seeds: int = knob(1, "heads on each, with the seeds 0, 1, ...", bounds=(1, 100))

    def __post_init__(self) -> None:
        check(self)


def rows(extent: Extent) -> Iterator[dict[str, Any]]:
    """Yield a row a network: each backbone alone, then with its heads."""
    dataset = load("cifar10")
    for name in extent.backbones.split(","):
        path = Path(os.environ["SAFEMAX_DATA"]) / "judges" / f"{name}.safetensors"
        plain = load_judge(path, class_names=dataset.class_names)
        yield {"judge": f"{name}, alone", **measured(plain, dataset)}
        for seed in range(extent.seeds):
            started = time.process_time()
            judge = train_none_head(plain, dataset, seed=seed)
            seconds = time.process_time() - started
            yield {"judge": f"{name} and a none head, seed {seed}", **measured(judge, dataset), "CPU s": seconds}


def measured(judge: Judge, dataset: Dataset) -> dict[str, float]:
    """Return accuracy and rejections of a judge, in percent."""
    labels, real = dataset.test.labels, to_float(dataset.test.images[:2000])
    answers = torch.cat([predict(judge, to_float(each))[0].argmax(1) for each in dataset.test.images.split(2000)])
    right = (answers == labels).double()
    found = {"accuracy": right.mean().item()}
    found |= {name: right[labels == dataset.class_names.index(name)].mean().item() for name in SHOWN}
    found |= {"real rejected": (answers == dataset.num_classes).double().mean().item()}
    noise = noise_histogram(judge, images=real)
    return {key: 100 * value for key, value in found.items()} | {law: noise[law].get(REJECT, 0.0) for law in noise}


def benchmark(argv: Sequence[str]) -> None:
    """Run and write the table."""
    extent = parse("python -m benchmarks.none_head", __doc__ or "", {"extent": Extent}, argv)["extent"]
    frame = pd.DataFrame(rows(extent)).set_index("judge")
    remark = REMARK.format(images=f"{DRAWS * ROWS:,}")
    tables.write("none-head-cifar10", "A none head on a frozen third-party network, CIFAR-10", frame, remark, digits=2)


if __name__ == "__main__":
    main(benchmark)
