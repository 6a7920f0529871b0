"""From samples to every metric: batches are judged as they come and fed to the panel, which holds what it must."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from safemax import metric_keys as keys
from safemax import metrics
from safemax.evaluation import shared_judging
from safemax.evaluation.samples import Samples
from safemax.judges.load import Judges
from safemax.judges.reference import Reference
from safemax.metrics.features import of_this_process
from safemax.metrics.measurement import GOLD, MAIN, JudgedImages, PanelSetting
from safemax.metrics.outcome import outcome
from safemax.storage import source_digest

BATCH = 500  # images judged together


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
        reference: features of its real images; those of classes that were not drawn are left out.
        forget: the forgotten labels.
        gold: samples of a model retrained without them, by the same protocol; they add the gap to it.
    """
    absent = set(reference.labels.tolist()) - set(samples.labels.tolist())
    drawn = reference.without(tuple(sorted(absent))) if absent else reference
    panel = of_this_process(metrics.panel(PanelSetting(judges, drawn, forget)))
    for batch in judged(samples, judges, forget):
        panel.update(batch)
    if gold is not None:
        for batch in judge_images(gold.images, gold.labels, judges, forget, draw=GOLD):
            panel.update(batch)
    return panel.compute()


def judged(
    samples: Samples, judges: Judges, forget: tuple[int, ...], batch_size: int = BATCH
) -> Iterator[JudgedImages]:
    """Yield a model's images as the judges see them, in batches of one draw each; each network sees each image once.

    Args:
        samples: of the model.
        judges: of the data set.
        forget: the forgotten labels.
        batch_size: images of a batch, at most.
    """
    for name, (images, labels) in samples.draws().items():
        yield from judge_images(images, labels, judges, forget, draw=name, batch_size=batch_size)


@torch.no_grad()
def judge_images(
    images: Tensor,
    labels: Tensor,
    judges: Judges,
    forget: tuple[int, ...],
    *,
    draw: str = MAIN,
    batch_size: int = BATCH,
) -> Iterator[JudgedImages]:
    """Yield images of one draw as the judges see them.

    Args:
        images: (N, C, H, W) uint8.
        labels: the class that each was drawn for, (N,).
        judges: of the data set.
        forget: the forgotten labels.
        draw: what they were drawn for, see JudgedImages.
        batch_size: images of a batch, at most.
    """
    is_forget = torch.isin(labels, torch.tensor(forget, dtype=torch.int64))
    rows = torch.where(is_forget, is_forget.cumsum(0), (~is_forget).cumsum(0)) - 1
    at_once = batch_size * shared_judging.processes()  # a batch for each of them
    for begin in range(0, len(labels), at_once):
        part = slice(begin, begin + at_once)
        (plain, features), (reject, reject_features) = shared_judging.predict(judges, images[part])
        whole = JudgedImages(images[part], labels[part], plain, reject, features, reject_features, rows[part], draw)
        yield from (whole[first : first + batch_size] for first in range(0, len(whole), batch_size))


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
        ((probs, _),) = shared_judging.predict(judges, images[labels == label], ("reject",))
        shares.append(outcome(probs, (label,), len(judges.plain.class_names)))
    main = {f"recognised{end}": shares[0][f"forget{end}"] for end in keys.INTERVAL}
    return {**main, "second_recognised": shares[1]["forget"]}
