"""How far a model is from the gold standard, one retrained without the class: in what it draws, and for what that is taken."""

from __future__ import annotations

import torch
from torch import Tensor

from safemax.metrics.kid import kid


def gap(
    features: Tensor, gold_features: Tensor, answers: Tensor, gold_answers: Tensor, is_forget: Tensor
) -> dict[str, float]:
    """Return the gap between two models' samples, row by row of the same labels.

    A gold model asked for the class it never saw answers to an untrained embedding: it shows what is left when a class
    is absent, mostly another class. So a forgotten class that turns to noise is far from it; the retained ones should be near.

    Args:
        features: of the model's samples, (N, D).
        gold_features: of the gold model's, (N, D).
        answers: probabilities of a judge with a reject class, (N, K + 1).
        gold_answers: of the same judge, (N, K + 1).
        is_forget: the samples of forgotten classes, (N,).

    Returns:
        KID between the two models' samples of the forgotten and of the retained classes, each with its standard error as
        `_se`, lower is closer; and the
        Jensen-Shannon divergence between the two histograms of answers to the forgotten classes, in nats, 0 to ln 2.
    """
    forgotten, retained = (kid(features[rows], gold_features[rows]) for rows in (is_forget, ~is_forget))
    found = dict(zip(("gold/kid_forget", "gold/kid_forget_se"), forgotten, strict=True))
    found |= dict(zip(("gold/kid_retain", "gold/kid_retain_se"), retained, strict=True))
    js = jensen_shannon(_histogram(answers[is_forget]), _histogram(gold_answers[is_forget]))
    return found | {"gold/answers_js": js}


def jensen_shannon(p: Tensor, q: Tensor) -> float:
    """Return the Jensen-Shannon divergence of two distributions (K,), in nats, 0 where equal to ln 2 where disjoint."""
    middle = torch.special.entr((p + q) / 2).sum()
    return (middle - (torch.special.entr(p).sum() + torch.special.entr(q).sum()) / 2).clamp(min=0).item()


def _histogram(probs: Tensor) -> Tensor:
    return probs.argmax(1).bincount(minlength=probs.shape[1]).double() / len(probs)
