"""The bird anomaly: plain UA says what its judge makes of noise, and moves with the judge; the panel does not.

python -m benchmarks.birds                 digits, by an unlearned model; CIFAR-10 birds too where SAFEMAX_DATA has CIFAR-10
python -m benchmarks.birds --data=digits   minutes on two cores; the judges of CIFAR-10 take half an hour, once
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
from benchmarks.examine import made
from pipelines.cli.parser import main, parse
from safemax.data.batches import to_uint8
from safemax.data.dataset import Dataset
from safemax.data.sources import load
from safemax.diffusion.model import Diffusion
from safemax.diffusion.sampling import FAST, PAPER, SECOND, Sampler, sample
from safemax.evaluation.measure import Evaluation, Samples, cached_samples, measure
from safemax.evaluation.verdict import verdict
from safemax.judges.classifier import save
from safemax.judges.load import JudgeConfig, Judges, judges, reference
from safemax.knobs import check, knob
from safemax.methods import create
from safemax.storage import cache
from safemax.training.trainer import Training

BIRD = 2
COUNT = 500  # samples of the forgotten class, as in the paper
KEPT = 50  # real test images of each other class, in the place of samples
SEEDS = (0, 4, 5)  # of the plain judges on digits; 1 to 3 are those of the ensemble with a reject class
TITLE = "The bird anomaly: plain UA of one and the same samples, by judge, and the panel"
REMARK = """\
digits: the base of the demo and SAFEMax's correction of it ({steps} steps), for the class that the first judge takes most noise \
for; the other judges differ from it by their seed. cifar10: no unlearned model was at hand. Samples are \
what a denoiser draws that has come to SAFEMax's optimum, where it predicts no noise (methods.md 4.5), or noise of other laws, or \
real birds; the retained classes' are real test images. Judges: the two third-party ResNets, a ResNet-20 of ours after \
{resnet20_steps} steps. Beside all judges of a data set stands one ensemble of three small networks with a reject class (cifar10: \
{small_steps} steps each). \
Noise it takes for the class: the largest share over clamped Gaussian, uniform, salt-and-pepper noise and drowned images, 500 of \
each. Precision and coverage are in the features of plain judge and ensemble together, KID in the plain judge's."""
SAMPLERS = {
    "1,000 ancestral steps, as the paper": PAPER,
    "1,000 ancestral steps, x0 clipped": Sampler("ddpm", 1000, 3.0, 0.0, True),
    "DDIM-20, x0 clipped": FAST,
}


@dataclass(frozen=True)
class Extent:
    """How much of the benchmark to run."""

    data: str = knob("all", "digits, cifar10 or all", choices=("all", "digits", "cifar10"))
    steps: int = knob(300, "steps of SAFEMax on digits", bounds=(1, 100_000))
    resnet20_steps: int = knob(1000, "training steps of our own resnet20", bounds=(1, 100_000))
    small_steps: int = knob(3000, "training steps of each judge that rejects", bounds=(1, 100_000))

    def __post_init__(self) -> None:
        check(self)


class Optimum(Diffusion):
    """What an unlearned denoiser tends to: no noise predicted (SAFEMax), or that of x0 ~ N(0, I); methods.md 4.5.

    Args:
        gaussian: whether x0 is N(0, I), whose expected noise is sqrt(1 - alpha_bar) x_t; else the prediction is 0.
    """

    gaussian: bool

    @classmethod
    def of(cls, dataset: Dataset, *, gaussian: bool) -> Optimum:
        """Return it for images of a data set's shape."""
        like = Diffusion.create("small", dataset.image_shape, dataset.class_names)
        found = cls(like.denoiser, like.schedule, like.class_names)
        found.gaussian = gaussian
        return found

    def forward(self, x_t: Tensor, t: Tensor, c: Tensor) -> Tensor:
        """Return the noise that it predicts."""
        return (1 - self.alpha_bar[t]).sqrt().view(-1, 1, 1, 1) * x_t if self.gaussian else torch.zeros_like(x_t)


def digits(extent: Extent) -> Iterator[dict[str, Any]]:
    """Yield a row a judge and set of samples, by the base and by a correction of it, for the class that judge 0 takes noise for."""
    dataset = load("digits")
    first = judges(dataset, JudgeConfig())
    k = max(range(dataset.num_classes), key=lambda each: first.noise_attractor((each,)))
    ensemble = _saved(first, dataset)
    juries = {seed: judges(dataset, JudgeConfig(judge_seed=seed, reject_judge=ensemble)) for seed in SEEDS}
    training = Training(steps=extent.steps, device="cpu", checkpoint_every=0)
    corrected = made(base_of(dataset), create("safemax"), dataset, k, training)
    for who, model, sampler in (("base", base_of(dataset), FAST), *(("SAFEMax", corrected, s) for s in (FAST, SECOND))):
        samples = cached_samples(model, (k,), _custom(sampler))
        for seed, jury in juries.items():
            yield _row(dataset, k, f"{who}, {sampler}", f"small, seed {seed}", jury, samples)


def cifar10(extent: Extent) -> Iterator[dict[str, Any]]:
    """Yield a row a judge and law of noise, and of real birds: no unlearned model of CIFAR-10 is at hand."""
    dataset = load("cifar10")
    for name, jury in _cifar10_juries(dataset, extent):
        for law, images in laws(dataset).items():
            yield _row(dataset, BIRD, law, name, jury, _with_real_others(dataset, BIRD, images))


def _custom(sampler: Sampler) -> Evaluation:
    return Evaluation(
        protocol="custom", forget_samples=COUNT, retain_samples=KEPT, second_samples=KEPT, sampler=sampler.name,
        sampler_steps=sampler.steps, guidance_scale=sampler.guidance_scale, sampler_eta=sampler.eta, clip_x0=sampler.clip,
    )  # fmt: skip


def laws(dataset: Dataset) -> dict[str, Tensor]:
    """Return what an unlearned model draws for birds by methods.md 4.5, and real birds; each (N, C, H, W) uint8."""
    labels, drawn = torch.full((COUNT,), BIRD), {}
    for how, sampler in SAMPLERS.items():
        drawn[f"noise: nothing predicted, {how}"] = sample(Optimum.of(dataset, gaussian=False), labels, sampler, seed=0)
    drawn["noise: x0 ~ N(0, I), clamped"] = sample(Optimum.of(dataset, gaussian=True), labels, PAPER, seed=0)
    drawn["noise: x0 ~ U(-1, 1), as SA"] = 2 * torch.rand(COUNT, *dataset.image_shape, generator=_seeded()) - 1
    real = dataset.test.images[dataset.test.labels == BIRD][:COUNT]
    return {name: to_uint8(images) for name, images in drawn.items()} | {"real birds, test images": real}


def _cifar10_juries(dataset: Dataset, extent: Extent) -> Iterator[tuple[str, Judges]]:
    """Yield three plain judges by name, each beside the same ensemble with a reject class."""
    small = JudgeConfig(judge="small", reject_judge="small", judge_steps=extent.small_steps)
    ensemble = _saved(judges(dataset, small), dataset)
    folder = Path(os.environ["SAFEMAX_DATA"]) / "judges"
    given: dict[str, dict[str, Any]] = {
        "ResNet-56, third party": {"judge": str(folder / "cifar10-resnet56.safetensors")},
        "ResNet-20, third party": {"judge": str(folder / "cifar10-resnet20.safetensors")},
        "ResNet-20, ours": {"judge": "resnet20", "judge_steps": extent.resnet20_steps},
    }
    for name, knobs in given.items():
        jury = judges(dataset, JudgeConfig(reject_judge=ensemble, **knobs))
        yield f"{name} ({jury.about['plain']['test_accuracy']:.1f} % right)", jury


def _saved(jury: Judges, dataset: Dataset) -> str:
    """Return a folder with the ensemble of a jury, for other juries to share."""
    folder = cache.folder("birds") / cache.key({"data": dataset.digest, "judges": jury.digest})
    if not folder.exists():
        save(jury.reject, folder)
    return str(folder)


def _with_real_others(dataset: Dataset, k: int, images: Tensor) -> Samples:
    """Return samples that answer label k with these images, and every other label with real test images."""
    labels, others = dataset.test.labels, [c for c in range(dataset.num_classes) if c != k]
    rows = torch.cat([torch.nonzero(labels == c).flatten()[:KEPT] for c in others])
    drawn = torch.cat([images, dataset.test.images[rows]])
    asked = torch.cat([torch.full((len(images),), k), labels[rows]])
    return Samples(drawn, asked, drawn[:KEPT], asked[:KEPT])


def _row(dataset: Dataset, k: int, what: str, judge: str, jury: Judges, samples: Samples) -> dict[str, Any]:
    m = measure(samples, jury, reference(dataset, jury, 500), (k,))
    found = verdict(m)
    row = {
        "data": dataset.name,
        "class": dataset.class_names[k],
        "drawn for the class": what,
        "plain judge": judge,
        "noise it takes for the class %": m["forget/noise_attracted"],
        "UA %": m["forget/ua"],
        "H": m["forget/entropy"],
        "UA with reject %": m["forget/ua_reject"],
        "rejected %": m["forget/rejected"],
        "other %": m["forget/other"],
        "precision": m["forget/precision"],
        "coverage": m["forget/coverage"],
        "KID, 0 real to 1 noise": m["forget/kid_normalised"],
        "verdict": found.outcome,
        "flags": " ".join(each for each in found.flags if each != "too_few_samples"),
    }
    print(row, file=sys.stderr, flush=True)
    return row


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def benchmark(argv: Sequence[str]) -> None:
    """Run and write the table."""
    extent = parse("python -m benchmarks.birds", __doc__ or "", {"extent": Extent}, argv)["extent"]
    parts: dict[str, Callable[[Extent], Iterator[dict[str, Any]]]] = {"digits": digits, "cifar10": cifar10}
    rows = [row for name, part in parts.items() if extent.data in ("all", name) for row in part(extent)]
    frame = pd.DataFrame(rows).set_index("data")
    name = "birds" if extent.data == "all" else f"birds-{extent.data}"
    tables.write(name, TITLE, frame, "\n".join([*_ranges(rows), "", REMARK.format(**vars(extent))]), digits=2)


def _ranges(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield a line on each set of samples: how far the judges are apart in UA, and in UA with the class "none of these"."""
    for (data, what), some in pd.DataFrame(rows).groupby(["data", "drawn for the class"], sort=False):
        plain, ours = some["UA %"], some["UA with reject %"]
        yield (
            f"- {data}, {what}: UA {plain.min():.1f} to {plain.max():.1f} %, with reject {ours.min():.1f} to {ours.max():.1f} %, "
            f"{' / '.join(some['verdict'].unique())}."
        )


if __name__ == "__main__":
    main(benchmark)
