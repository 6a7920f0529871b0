"""How far a model is from the gold standard, one retrained without the class: in what it draws, and how that is classified."""

from __future__ import annotations

from scipy.special import rel_entr
from torch import Tensor

from safemax import metric_keys as keys
from safemax.metrics.kid import kid
from safemax.metrics.measurement import Measurement, MetricInfo

METRICS = {
    keys.GOLD_KID_FORGET: MetricInfo(
        "KID to the retrained model's samples of the forgotten classes", "squared MMD", ""
    ),
    keys.GOLD_KID_RETAIN: MetricInfo(
        "KID to the retrained model's samples of the retained classes", "squared MMD", "lower"
    ),
    keys.GOLD_ANSWERS_JS: MetricInfo(
        "divergence from the retrained model's answers on the forgotten classes", "nats", ""
    ),
}


def measure(given: Measurement) -> dict[str, float]:
    """Return the gap to the gold model, where there is one."""
    if given.gold is None:
        return {}
    main, gold = given.main, given.gold
    return gap(main.features, gold.features, main.reject, gold.reject, given.is_forget)


def gap(
    features: Tensor, gold_features: Tensor, answers: Tensor, gold_answers: Tensor, is_forget: Tensor
) -> dict[str, float]:
    """Return the gap between two models' samples, row by row of the same labels.

    For a class that it never saw, a gold model answers to an untrained embedding: mostly with another class. A model that
    draws noise for the forgotten class is therefore far from it; the retained classes should be near.

    Args:
        features: of the model's samples, (N, D).
        gold_features: of the gold model's, (N, D).
        answers: probabilities of a judge with a reject class, (N, K + 1).
        gold_answers: of the same judge, (N, K + 1).
        is_forget: the samples of forgotten classes, (N,).

    Returns:
        KID between the two models' samples of the forgotten and of the retained classes, each with its standard error as
        `_se`, lower is closer; and the Jensen-Shannon divergence between the two histograms of answers to the forgotten
        classes, in nats, 0 to ln 2.
    """
    forgotten, retained = (kid(features[rows], gold_features[rows]) for rows in (is_forget, ~is_forget))
    metrics = _with_error(keys.GOLD_KID_FORGET, *forgotten) | _with_error(keys.GOLD_KID_RETAIN, *retained)
    js = jensen_shannon(_histogram(answers[is_forget]), _histogram(gold_answers[is_forget]))
    return metrics | {keys.GOLD_ANSWERS_JS: js}


def _with_error(key: str, value: float, error: float) -> dict[str, float]:
    return {key: value, key + keys.SE: error}


def jensen_shannon(p: Tensor, q: Tensor) -> float:
    """Return the Jensen-Shannon divergence of two distributions (K,), in nats, 0 where equal to ln 2 where disjoint."""
    first, second = p.cpu().numpy(), q.cpu().numpy()
    middle = (first + second) / 2
    return max(0.0, float((rel_entr(first, middle) + rel_entr(second, middle)).sum() / 2))


def _histogram(probs: Tensor) -> Tensor:
    return probs.argmax(1).bincount(minlength=probs.shape[1]).double() / len(probs)
