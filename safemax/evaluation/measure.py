"""One set of samples, every metric: what was forgotten, what was kept, by a stated protocol."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from safemax.data.batches import to_float, to_uint8
from safemax.diffusion.model import Diffusion
from safemax.diffusion.sampling import FAST, PAPER, SECOND, Sampler, sample
from safemax.errors import InputError
from safemax.evaluation.retention import RetainedSamples, retention
from safemax.judges.classifier import predict
from safemax.judges.inception import Inception, extract
from safemax.judges.load import Judges, Reference
from safemax.knobs import check, knob
from safemax.metrics.constant_images import constant_share
from safemax.metrics.entropy import entropy_of_probabilities, forget_probability
from safemax.metrics.frechet import distance_to
from safemax.metrics.jackknife import standard_error
from safemax.metrics.kid import FEWEST, kid, normalised
from safemax.metrics.outcome import outcome
from safemax.metrics.pixels import pixel_statistics
from safemax.metrics.precision_coverage import precision_coverage
from safemax.metrics.retrain_gap import gap
from safemax.storage import cache, source_digest

DRAWING = 1  # part of the key of samples that are kept: a change of what `draw` asks for must change it
SHOWN = 5  # images of a class in the comparison picture
NOISE = 500  # images of pure noise, the far end of the normalised KID
INTERVAL = ("", "_low", "_high")


@dataclass(frozen=True)
class Evaluation:
    """How a model is measured; recorded with every number, since sampler and counts decide the numbers.

    `fast`: DDIM-20, x0 clipped, guidance 1.5; 500 forget and 100 images a retained class. `paper`: 1,000 ancestral steps,
    guidance 3, no clipping; 500 and 5,000. Both look a second time with the other kind of sampler. `custom` takes the knobs.
    """

    protocol: str = knob(
        "fast", "fast, paper, or custom, which takes the sampler's knobs below", choices=("fast", "paper", "custom")
    )
    forget_samples: int = knob(0, "images of the forgotten classes; 0 takes the protocol's", bounds=(0, 1_000_000))
    retain_samples: int = knob(0, "images of each retained class; 0 takes the protocol's", bounds=(0, 1_000_000))
    second_samples: int = knob(100, "images of the forgotten classes under the second sampler", bounds=(1, 1_000_000))
    sampler: str = knob("ddim", "sampling rule of custom", choices=("ddim", "ddpm", "dpmpp"))
    sampler_steps: int = knob(20, "denoising steps of custom", bounds=(1, 1000))
    guidance_scale: float = knob(1.5, "guidance of custom: g in eps_null + g (eps_c - eps_null)", bounds=(-20, 20))
    sampler_eta: float = knob(0.0, "noise of custom's ddim steps, 0 to 1", bounds=(0, 1))
    clip_x0: bool = knob(True, "whether custom clips the predicted x0")
    evaluation_seed: int = knob(0, "fixes the samples", bounds=(0, 2**62))

    def __post_init__(self) -> None:
        check(self)
        if 0 < self.forget_samples < FEWEST:
            allowed = f"{FEWEST} or more, which KID needs, or 0 for the protocol's"
            raise InputError(f"forget_samples = {self.forget_samples} is not allowed; {allowed}")
        fixed = ("sampler", "sampler_steps", "guidance_scale", "sampler_eta", "clip_x0")
        default = type(self).__dataclass_fields__
        changed = [name for name in fixed if getattr(self, name) != default[name].default]
        if self.protocol != "custom" and changed:
            raise InputError(
                f"protocol = {self.protocol} fixes {', '.join(changed)}; protocol = custom takes your value"
            )

    @property
    def main_sampler(self) -> Sampler:
        """The sampler of the numbers."""
        custom = Sampler(self.sampler, self.sampler_steps, self.guidance_scale, self.sampler_eta, self.clip_x0)
        return {"fast": FAST, "paper": PAPER, "custom": custom}[self.protocol]

    @property
    def second_sampler(self) -> Sampler:
        """The sampler of the second look."""
        if self.protocol == "custom":
            return Sampler("ddpm", min(self.sampler_steps, SECOND.steps), self.guidance_scale, 0.0, False)
        return SECOND if self.protocol == "fast" else FAST

    @property
    def counts(self) -> tuple[int, int]:
        """Forget images in all, and images of each retained class."""
        forget, retain = (500, 5000) if self.protocol == "paper" else (500, 100)
        return self.forget_samples or forget, self.retain_samples or retain

    def describe(self) -> dict[str, Any]:
        """Return what makes two numbers comparable, for params and evidence."""
        forget, retain = self.counts
        return {
            "protocol": self.protocol,
            "sampler": str(self.main_sampler),
            "second_sampler": str(self.second_sampler),
            "forget_samples": forget,
            "retain_samples": retain,
            "seed": self.evaluation_seed,
        }


@dataclass(frozen=True)
class Samples:
    """What a model drew: images (N, C, H, W) uint8 and the labels (N,) they were asked for, under both samplers."""

    images: Tensor
    labels: Tensor
    second_images: Tensor
    second_labels: Tensor

    def without(self, classes: tuple[int, ...]) -> Samples:
        """Return the samples of all other classes."""
        gone = torch.tensor(classes, dtype=torch.int64)
        main, second = (~torch.isin(each, gone) for each in (self.labels, self.second_labels))
        return Samples(self.images[main], self.labels[main], self.second_images[second], self.second_labels[second])


def draw(
    diffusion: Diffusion,
    forget: tuple[int, ...],
    evaluation: Evaluation,
    *,
    shown: int = SHOWN,
    progress: bool = True,
) -> Samples:
    """Draw the samples of a protocol; two models of one architecture start from identical noise, row by row.

    The second sampler draws `shown` images of each retained class, for pictures: its metrics are of the forgotten ones.
    """
    forget_count, retain_count = evaluation.counts
    labels = _labels(diffusion.num_classes, forget, forget_count, retain_count)
    second = _labels(diffusion.num_classes, forget, evaluation.second_samples, min(shown, retain_count))
    seed = evaluation.evaluation_seed
    images = sample(diffusion, labels, evaluation.main_sampler, seed=seed, progress=progress)
    second_images = sample(diffusion, second, evaluation.second_sampler, seed=seed + 1, progress=progress)
    return Samples(to_uint8(images), labels, to_uint8(second_images), second)


def cached_samples(
    diffusion: Diffusion, forget: tuple[int, ...], evaluation: Evaluation, *, progress: bool = True
) -> Samples:
    """Return `draw`, from the cache where the same model drew the same before: the base is sampled once."""
    facts = {
        "model": diffusion.identity(),
        "forget": forget,
        "second": evaluation.second_samples,
        "code": source_digest.digest("safemax.diffusion.sampling"),
        "drawing": DRAWING,
        **evaluation.describe(),
    }
    path = cache.folder("samples") / f"{cache.key(facts)}.safetensors"
    return Samples(**cache.tensors(path, lambda: asdict(draw(diffusion, forget, evaluation, progress=progress))))


def measure(
    samples: Samples, judges: Judges, reference: Reference, forget: tuple[int, ...], *, gold: Samples | None = None
) -> dict[str, float]:
    """Return every metric of a set of samples (safemax.evaluation.metric_info.METRICS: meaning, unit, direction).

    Each network sees each image once. What a sample shows is judged by the ensemble with a reject class; FID and KID are
    taken in the features of the plain judge, nearest neighbours in those of both. The standard FID is added where the judges
    come with its network.

    Args:
        samples: of the model that is measured.
        judges: of the data set.
        reference: features of its real images.
        forget: the forgotten labels.
        gold: samples of a model retrained without them, by the same protocol; they add the gap to it.
    """
    seen, names = _look(samples, judges), judges.plain.class_names
    asked = torch.isin(seen.labels, torch.tensor(forget))
    main = slice(len(samples.labels))
    images = to_float(samples.images[asked[main]])
    metrics = _forgotten(seen.plain[main][asked[main]], seen.reject[main][asked[main]], forget, judges)
    metrics |= {f"pixels/{name}": value for name, value in pixel_statistics(images).items()}
    metrics |= {"pixels/constant": constant_share(images)}
    metrics |= _distance(seen.features[main][asked[main]], judges, reference, forget)
    metrics |= {f"forget/{name}": value for name, value in _nearness(seen, main, asked, reference, forget).items()}
    metrics |= retention(seen.kept(main), reference, forget, names)
    metrics |= _second(seen, asked, slice(len(samples.labels), None), reference, forget, len(names))
    if judges.inception is not None:
        metrics |= _standard_fid(samples.images[~asked[main]], judges.inception, reference, forget)
    if gold is not None:
        other = _look(gold, judges)
        metrics |= gap(seen.features[main], other.features[main], seen.reject[main], other.reject[main], asked[main])
    return metrics


def recognised(samples: Samples, judges: Judges, label: int) -> dict[str, float]:
    """Return how many percent of the samples of a class are taken for it, by the ensemble with a reject class.

    Returns:
        recognised, with its 95 % interval as recognised_low and recognised_high, and second_recognised, under the second
        sampler; the same numbers as forget/recognised of a model that forgets this class alone.
    """
    shares = []
    for images, labels in ((samples.images, samples.labels), (samples.second_images, samples.second_labels)):
        seen = predict(judges.reject, to_float(images[labels == label]))[0]
        shares.append(outcome(seen, (label,), len(judges.plain.class_names)))
    main = {f"recognised{end}": shares[0][f"forget{end}"] for end in INTERVAL}
    return {**main, "second_recognised": shares[1]["forget"]}


@dataclass(frozen=True)
class _Seen:
    """What the judges made of all images, the main sampler's before the second's: features and probabilities."""

    labels: Tensor
    plain: Tensor
    reject: Tensor
    features: Tensor
    rejecting: Tensor

    def kept(self, rows: slice) -> RetainedSamples:
        return RetainedSamples(self.labels[rows], self.reject[rows].argmax(1), self.features[rows])


def _look(samples: Samples, judges: Judges) -> _Seen:
    images = to_float(torch.cat([samples.images, samples.second_images]))
    plain, features = predict(judges.plain, images)
    reject, rejecting = predict(judges.reject, images)
    return _Seen(torch.cat([samples.labels, samples.second_labels]), plain, reject, features, rejecting)


def _labels(num_classes: int, forget: tuple[int, ...], forget_count: int, retain_count: int) -> Tensor:
    share = [forget_count // len(forget) + (i < forget_count % len(forget)) for i in range(len(forget))]
    counts = {k: retain_count for k in range(num_classes)} | dict(zip(forget, share, strict=True))
    return torch.cat([torch.full((max(n, 1),), k, dtype=torch.int64) for k, n in counts.items()])


def _forgotten(plain: Tensor, reject: Tensor, forget: tuple[int, ...], judges: Judges) -> dict[str, float]:
    verdict = outcome(reject, forget, judges.reject.num_classes)
    paper = outcome(plain, forget, judges.plain.num_classes)
    shares = {"ua_reject": "ua", "recognised": "forget", "rejected": "reject", "other": "other"}
    metrics = {f"forget/{ours}{end}": verdict[name + end] for ours, name in shares.items() for end in INTERVAL}
    metrics |= {f"forget/ua{end}": paper["ua" + end] for end in INTERVAL}
    metrics |= _mean("forget/entropy", entropy_of_probabilities(plain))
    metrics |= _mean("forget/probability", forget_probability(reject, forget))
    return metrics | {"forget/noise_attracted": judges.noise_attractor(forget)}


def _mean(name: str, values: Tensor) -> dict[str, float]:
    """Return a mean and its standard error, s / sqrt(n); of a single value that is taken to be 0."""
    spread = values.std(correction=0).item() / math.sqrt(max(len(values) - 1, 1))
    return {name: values.mean().item(), f"{name}_se": spread}


def _distance(features: Tensor, judges: Judges, reference: Reference, forget: tuple[int, ...]) -> dict[str, float]:
    real = reference.of(forget)
    value, error = kid(features, real)
    split, noise = kid(real[::2], real[1::2])[0], kid(noise_features(judges), real)[0]
    return {
        "forget/kid": value,
        "forget/kid_se": error,
        "forget/kid_real": split,
        "forget/kid_noise": noise,
        "forget/kid_normalised": normalised(value, split, noise),
        "forget/kid_normalised_se": error / abs(noise - split),
    }


def _nearness(
    seen: _Seen, rows: slice, asked: Tensor, reference: Reference, forget: tuple[int, ...]
) -> dict[str, float]:
    """Return precision and coverage in the plain judge's and the ensemble's features side by side, at equal spread.

    A judge that takes noise for a class puts noise among its images: near has to be near for the other networks too.
    """
    spaces = ((reference.of(forget), seen.features), (reference.rejecting_of(forget), seen.rejecting))
    spread = [real.double().var(0).sum().sqrt().clamp(min=1e-12) for real, _ in spaces]
    real = torch.cat([each.double() / unit for (each, _), unit in zip(spaces, spread, strict=True)], dim=1)
    drawn = [each[rows][asked[rows]].double() / unit for (_, each), unit in zip(spaces, spread, strict=True)]
    return precision_coverage(real, torch.cat(drawn, dim=1))


def _standard_fid(
    images: Tensor, network: Inception, reference: Reference, forget: tuple[int, ...]
) -> dict[str, float]:
    """Return FID against all real training images of the retained classes, as the paper takes it against its 45,000."""
    fid = distance_to(torch.cat([each for k, each in enumerate(reference.inception) if k not in forget]))
    features = extract(network, images, what="Inception on samples")
    return {"retain/fid_inception": fid(features), "retain/fid_inception_se": standard_error(fid, features)}


def noise_features(judges: Judges) -> Tensor:
    """Return the plain judge's features of NOISE images of N(0, 1) clamped to [-1, 1], (NOISE, D); computed once, then kept."""
    path = cache.folder("references") / f"{cache.key({'judges': judges.digest, 'noise': NOISE})}.safetensors"

    def make() -> dict[str, Tensor]:
        shape = (NOISE, *judges.plain.image_shape)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
        return {"features": predict(judges.plain, noise)[1]}

    return cache.tensors(path, make)["features"]


def _second(
    seen: _Seen, asked: Tensor, rows: slice, reference: Reference, forget: tuple[int, ...], num_classes: int
) -> dict[str, float]:
    found = outcome(seen.reject[rows][asked[rows]], forget, num_classes)
    near = _nearness(seen, rows, asked, reference, forget)
    shares = {"ua_reject": "ua", "recognised": "forget", "reject": "reject", "other": "other"}
    metrics = {f"forget/second_{ours}{end}": found[name + end] for ours, name in shares.items() for end in INTERVAL}
    return metrics | {f"forget/second_precision{end}": near[f"precision{end}"] for end in INTERVAL}
