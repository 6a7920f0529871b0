"""The bird anomaly: plain UA depends on how its judge classifies noise, so it changes with the judge; the panel does not.

python -m benchmarks.birds --data=digits     by an unlearned model; minutes on two cores
python -m benchmarks.birds --data=mnist      the same at 8x8 pixels, where SAFEMAX_DATA has MNIST
python -m benchmarks.birds --data=cifar10    birds, where SAFEMAX_DATA has CIFAR-10 and the third-party judges; half an hour
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from benchmarks import tables
from benchmarks.corrections import base_of
from benchmarks.examine import trained
from pipelines.cli.parser import main, parse
from safemax import metric_keys as keys
from safemax.data.batches import to_uint8
from safemax.data.dataset import Dataset
from safemax.data.sources import load
from safemax.diffusion.model import Diffusion
from safemax.diffusion.sampling import FAST, PAPER, SECOND, Sampler, sample
from safemax.evaluation.measure import measure
from safemax.evaluation.protocol import Evaluation
from safemax.evaluation.samples import Samples, cached_samples
from safemax.evaluation.verdict import verdict
from safemax.judges.config import JudgeConfig
from safemax.judges.files import save
from safemax.judges.load import Judges, judges
from safemax.judges.reference import reference
from safemax.knobs import check, knob
from safemax.methods import create
from safemax.storage import cache
from safemax.training.settings import Training

BIRD = 2
COUNT = 500  # samples of the forgotten class, as in the paper
RETAINED = 50  # real test images of each other class, instead of samples
SEEDS = (0, 4, 5)  # of the plain judges on digits; 1 to 3 are those of the ensemble with a reject class
TITLE = "The bird anomaly: plain UA of the same samples by judge, and the panel"
REMARK = """\
digits and mnist (at 8x8): a base trained as the demo's and SAFEMax's correction of it ({steps} steps), for the class as which the \
first judge classifies most noise; the other judges differ from it by their seed. cifar10: no unlearned model was available. \
Samples are what a denoiser at SAFEMax's optimum draws, where it predicts no noise, or other noise, or real birds; those of the \
retained classes are real test images. Judges: the two third-party ResNets and ours (`whitened`). All judges of a data set share \
one ensemble with a reject class: of cifar10, three heads on the third-party ResNet-20. \
Noise classified as the class: the largest share over clamped Gaussian, uniform, salt-and-pepper noise and images drowned in \
noise, 500 of each. Recall: real test images of the class that the ensemble recognises. Precision and coverage are in the features \
of plain judge and ensemble together, KID in the plain judge's."""
SAMPLERS = {
    "1,000 ancestral steps, as the paper": PAPER,
    "1,000 ancestral steps, x0 clipped": Sampler("ddpm", 1000, 3.0, 0.0, True),
    "DDIM-20, x0 clipped": FAST,
}


@dataclass(frozen=True)
class BenchmarkOptions:
    """How much of the benchmark to run."""

    data: str = knob("digits", "digits, mnist, cifar10 or all", choices=("all", "digits", "mnist", "cifar10"))
    steps: int = knob(300, "steps of SAFEMax on digits and mnist", bounds=(1, 100_000))

    def __post_init__(self) -> None:
        check(self)


class Optimum(Diffusion):
    """What an unlearned denoiser tends to: it predicts no noise (SAFEMax), or the noise of x0 ~ N(0, I).

    Args:
        gaussian: whether x0 is N(0, I), whose expected noise is sqrt(1 - alpha_bar) x_t; else the prediction is 0.
    """

    gaussian: bool

    @classmethod
    def of(cls, dataset: Dataset, *, gaussian: bool) -> Optimum:
        """Return the optimum for images of a data set's shape."""
        template = Diffusion.create("small", dataset.image_shape, dataset.class_names)
        optimum = cls(template.denoiser, template.schedule, template.class_names)
        optimum.gaussian = gaussian
        return optimum

    def forward(self, x_t: Tensor, t: Tensor, c: Tensor) -> Tensor:
        """Return the noise that it predicts."""
        return (1 - self.alpha_bar[t]).sqrt().view(-1, 1, 1, 1) * x_t if self.gaussian else torch.zeros_like(x_t)


def unlearned(dataset: Dataset, options: BenchmarkOptions) -> Iterator[dict[str, Any]]:
    """Yield one row per judge and set of samples, of the base and of a correction, for the class as which judge 0 sees noise."""
    first = judges(dataset, JudgeConfig())
    k = max(range(dataset.num_classes), key=lambda each: first.noise_attractor((each,)))
    ensemble = _saved(first, dataset)
    judge_sets = {seed: judges(dataset, JudgeConfig(judge_seed=seed, reject_judge=ensemble)) for seed in SEEDS}
    training = Training(steps=options.steps, device="cpu", checkpoint_every=0)
    corrected = trained(base_of(dataset), create("safemax"), dataset, k, training)
    for name, model, sampler in (
        ("base", base_of(dataset), FAST),
        *(("SAFEMax", corrected, s) for s in (FAST, SECOND)),
    ):
        samples = cached_samples(model, (k,), _custom(sampler))
        for seed, judge_set in judge_sets.items():
            yield _row(dataset, k, f"{name}, {sampler}", f"small, seed {seed}", judge_set, samples)


def cifar10() -> Iterator[dict[str, Any]]:
    """Yield one row per judge and source of images: no unlearned model of CIFAR-10 is available."""
    dataset = load("cifar10")
    sources = image_sources(dataset)
    for name, judge_set in _cifar10_judges(dataset):
        for source, images in sources.items():
            yield _row(dataset, BIRD, source, name, judge_set, _with_real_others(dataset, BIRD, images))


def _custom(sampler: Sampler) -> Evaluation:
    return Evaluation(
        protocol="custom", forget_samples=COUNT, retain_samples=RETAINED, second_samples=RETAINED, sampler=sampler.name,
        sampler_steps=sampler.steps, guidance_scale=sampler.guidance_scale, sampler_eta=sampler.eta, clip_x0=sampler.clip,
    )  # fmt: skip


def image_sources(dataset: Dataset) -> dict[str, Tensor]:
    """Return what an unlearned model at its optimum draws for birds, and real birds; each (N, C, H, W) uint8."""
    labels, images = torch.full((COUNT,), BIRD), {}
    for how, sampler in SAMPLERS.items():
        images[f"noise: nothing predicted, {how}"] = sample(
            Optimum.of(dataset, gaussian=False), labels, sampler, seed=0
        )
    images["noise: x0 ~ N(0, I), clamped"] = sample(Optimum.of(dataset, gaussian=True), labels, PAPER, seed=0)
    images["noise: x0 ~ U(-1, 1), as SA"] = 2 * torch.rand(COUNT, *dataset.image_shape, generator=_seeded()) - 1
    real = dataset.test.images[dataset.test.labels == BIRD][:COUNT]
    return {name: to_uint8(each) for name, each in images.items()} | {"real birds, test images": real}


def _cifar10_judges(dataset: Dataset) -> Iterator[tuple[str, Judges]]:
    """Yield three plain judges by name, each with the same ensemble with a reject class."""
    folder = Path(os.environ["SAFEMAX_DATA"]) / "judges"
    given = {
        "ResNet-56, third party": str(folder / "cifar10-resnet56.safetensors"),
        "ResNet-20, third party": str(folder / "cifar10-resnet20.safetensors"),
        "whitened, ours": "whitened",
    }
    heads = f"none_head:{given['ResNet-20, third party']}"
    for name, judge in given.items():
        judge_set = judges(dataset, JudgeConfig(judge=judge, reject_judge=heads))
        yield f"{name} ({judge_set.about['plain']['test_accuracy']:.1f} % right)", judge_set


def _saved(judge_set: Judges, dataset: Dataset) -> str:
    """Return a folder with the ensemble of these judges, for other judges to share."""
    folder = cache.folder("birds") / cache.key({"data": dataset.digest, "judges": judge_set.digest})
    if not folder.exists():
        save(judge_set.reject, folder)
    return str(folder)


def _with_real_others(dataset: Dataset, k: int, images: Tensor) -> Samples:
    """Return samples with these images for label k, and real test images for every other label."""
    labels, others = dataset.test.labels, [c for c in range(dataset.num_classes) if c != k]
    rows = torch.cat([torch.nonzero(labels == c).flatten()[:RETAINED] for c in others])
    drawn = torch.cat([images, dataset.test.images[rows]])
    requested = torch.cat([torch.full((len(images),), k), labels[rows]])
    return Samples(drawn, requested, drawn[:RETAINED], requested[:RETAINED])


def _row(dataset: Dataset, k: int, what: str, judge: str, judge_set: Judges, samples: Samples) -> dict[str, Any]:
    m = measure(samples, judge_set, reference(dataset, judge_set, 500), (k,))
    result = verdict(m)
    row = {
        "data": dataset.name,
        "class": dataset.class_names[k],
        "drawn for the class": what,
        "plain judge": judge,
        "noise it takes for the class %": m[keys.NOISE_ATTRACTED],
        "UA %": m[keys.UA],
        "H": m[keys.ENTROPY],
        "recall %": m[keys.JUDGE_RECALL],
        "UA with reject %": m[keys.UA_REJECT],
        "rejected %": m[keys.REJECTED],
        "other %": m[keys.OTHER],
        "precision": m[keys.PRECISION],
        "coverage": m[keys.COVERAGE],
        "KID, 0 real to 1 noise": m[keys.KID_NORMALISED],
        "verdict": result.outcome,
        "flags": " ".join(each for each in result.flags if each != "too_few_samples"),
    }
    print(row, file=sys.stderr, flush=True)
    return row


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def benchmark(argv: Sequence[str]) -> None:
    """Run and write the table."""
    options = parse("python -m benchmarks.birds", __doc__ or "", {"options": BenchmarkOptions}, argv)["options"]
    parts: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
        "digits": lambda: unlearned(load("digits"), options),
        "mnist": lambda: unlearned(load("mnist", size=8), options),
        "cifar10": cifar10,
    }
    rows = [row for name, part in parts.items() if options.data in ("all", name) for row in part()]
    frame = pd.DataFrame(rows).set_index("data")
    name = "birds" if options.data == "all" else f"birds-{options.data}"
    tables.write(name, TITLE, frame, "\n".join([*_ranges(rows), "", REMARK.format(**vars(options))]), digits=2)


def _ranges(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield one line per set of samples: the range of UA over the judges, and of UA with a reject class."""
    for (data, what), some in pd.DataFrame(rows).groupby(["data", "drawn for the class"], sort=False):
        plain, ours = some["UA %"], some["UA with reject %"]
        yield (
            f"- {data}, {what}: UA {plain.min():.1f} to {plain.max():.1f} %, with reject {ours.min():.1f} to {ours.max():.1f} %, "
            f"{' / '.join(some['verdict'].unique())}."
        )


if __name__ == "__main__":
    main(benchmark)
