"""One set of samples, every metric: what was forgotten and what was retained."""

from __future__ import annotations

import torch

from safemax import metric_keys as keys
from safemax import metrics
from safemax.data.batches import to_float
from safemax.evaluation.samples import Samples
from safemax.judges.classifier import predict
from safemax.judges.load import Judges, Reference
from safemax.metrics.measurement import JudgedImages, Measurement
from safemax.metrics.outcome import outcome
from safemax.storage import source_digest


def measure(
    samples: Samples, judges: Judges, reference: Reference, forget: tuple[int, ...], *, gold: Samples | None = None
) -> dict[str, float]:
    """Return every metric of a set of samples (meaning, unit and direction: safemax.evaluation.metric_info).

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
    main, second = judged(samples, judges)
    of_gold = None if gold is None else judged(gold, judges)[0]
    given = Measurement(main, second, judges, reference, forget, of_gold)
    return {key: value for metric in metrics.available().values() for key, value in metric.measure(given).items()}


def judged(samples: Samples, judges: Judges) -> tuple[JudgedImages, JudgedImages]:
    """Return the main sampler's images and the second's as the judges see them; each network sees each image once.

    Args:
        samples: of a model.
        judges: of the data set.
    """
    images = torch.cat([samples.images, samples.second_images])
    plain, features = predict(judges.plain, to_float(images))
    reject, reject_features = predict(judges.reject, to_float(images))
    labels = torch.cat([samples.labels, samples.second_labels])
    both = JudgedImages(images, labels, plain, reject, features, reject_features)
    return both[: len(samples.labels)], both[len(samples.labels) :]


def code_digest() -> str:
    """Return the sha256 (hex) of all code that a measurement runs, that of every metric included."""
    return source_digest.digest(__name__, *(metric.module for metric in metrics.available().values()))


def recognised(samples: Samples, judges: Judges, label: int) -> dict[str, float]:
    """Return how many percent of the samples of a class the ensemble with a reject class classifies as that class.

    Args:
        samples: of the model.
        judges: of the data set.
        label: of the class.

    Returns:
        recognised, with its 95 % interval as recognised_low and recognised_high, and second_recognised, under the second
        sampler; the same numbers as forget/recognised of a model that forgets only this class.
    """
    shares = []
    for images, labels in ((samples.images, samples.labels), (samples.second_images, samples.second_labels)):
        probs = predict(judges.reject, to_float(images[labels == label]))[0]
        shares.append(outcome(probs, (label,), len(judges.plain.class_names)))
    main = {f"recognised{end}": shares[0][f"forget{end}"] for end in keys.INTERVAL}
    return {**main, "second_recognised": shares[1]["forget"]}
