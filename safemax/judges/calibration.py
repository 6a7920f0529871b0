"""Whether a judge's confidence is the share of its right answers, and the temperature that mends smoothed labels' doubt."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from torch import Tensor

from safemax.judges.recipes import is_smoothed

BINS = 15  # of confidence, in the calibration error
TEMPERATURES = (0.05, 20.0)  # between which one is looked for


def calibration(arch: str, probs: Tensor, labels: Tensor) -> dict[str, float]:
    """Return the calibration error of a judge, and where its labels were smoothed, the temperature that it is taken at.

    Args:
        arch: of the judge.
        probs: of real images that it has not seen, at temperature 1, (N, K).
        labels: theirs, (N,).

    Returns:
        calibration_error, 0 to 1 (Guo et al. 2017, arXiv:1706.04599, with 15 bins). Of a judge whose labels were smoothed also
        temperature, fitted to every second image, so that calibration_error is of the others at that temperature, and
        calibration_error_at_1, theirs without it.
    """
    if not is_smoothed(arch):
        return {"calibration_error": calibration_error(probs, labels)}
    fitted = temperature(probs[::2], labels[::2])
    others, theirs = probs[1::2], labels[1::2]
    return {
        "temperature": fitted,
        "calibration_error": calibration_error(tempered(others, fitted), theirs),
        "calibration_error_at_1": calibration_error(others, theirs),
    }


def temperature(probs: Tensor, labels: Tensor) -> float:
    """Return the temperature at which probabilities (N, K) at 1 explain the labels (N,) best (Guo et al. 2017, section 4.2)."""

    def loss(log_of_it: float) -> float:
        return F.nll_loss(_log_tempered(probs, math.exp(log_of_it)), labels).item()

    return math.exp(minimize_scalar(loss, bounds=[math.log(each) for each in TEMPERATURES], method="bounded").x)


def tempered(probs: Tensor, by: float) -> Tensor:
    """Return what probabilities (N, K) at temperature 1 are at another, (N, K) float64; the largest stays the largest."""
    return _log_tempered(probs, by).exp()


def calibration_error(probs: Tensor, labels: Tensor) -> float:
    """Return the expected calibration error of probabilities (N, K), 0 to 1."""
    from torchmetrics.functional.classification import multiclass_calibration_error  # a second to import

    return multiclass_calibration_error(probs, labels, probs.shape[1], n_bins=BINS).item()


def _log_tempered(probs: Tensor, by: float) -> Tensor:
    least = torch.finfo(torch.float32).tiny  # float32 probabilities end there
    return (probs.double().clamp_min(least).log() / by).log_softmax(dim=1)
