"""What is left of the data in latent states x_t: their entropy, and how far two classes overlap (Figure 1 of SAFEMax).

The paper states neither estimator. Both here are closed forms of the data's means and covariances, exact for Gaussian data:
noise adds (1 - alpha_bar) I to alpha_bar times the covariance, so one eigendecomposition serves every step t.
"""

from __future__ import annotations

import math
from itertools import combinations

import torch
from torch import Tensor

from safemax.data.batches import to_float
from safemax.data.dataset import Split

MOST_ROWS = 10_000  # images that covariances are taken of


def entropy(images: Tensor, alpha_bar: Tensor) -> Tensor:
    """Return the entropy of x_t in nats a dimension, (T,): 1/2 log(2 pi e) plus the mean half log of the variances.

    An upper bound where the data are not Gaussian; it ends at 1.419, the entropy of N(0, 1).

    Args:
        images: x0, (N, C, H, W) in [-1, 1].
        alpha_bar: (T,), in (0, 1].
    """
    x = images.flatten(1).double()
    variances = torch.linalg.eigvalsh(torch.cov(x.T)).clamp_min(0)
    a = alpha_bar.double()[:, None]
    return (0.5 * math.log(2 * math.pi * math.e) + 0.5 * (a * variances + 1 - a).log().mean(1)).float()


def overlap(images: Tensor, labels: Tensor, alpha_bar: Tensor) -> Tensor:
    """Return the overlap of two classes' latent states, mean over all pairs of classes, (T,) in [0, 1]; 1 is no difference.

    Two Gaussians of one covariance S and means m apart share the mass 2 Phi(-d / 2), d^2 = m' S^-1 m (Mahalanobis). In x_t
    the squared means and S scale with alpha_bar and S gains 1 - alpha_bar.

    Args:
        images: x0, (N, C, H, W) in [-1, 1].
        labels: (N,).
        alpha_bar: (T,), in (0, 1].
    """
    x = images.flatten(1).double()
    classes = labels.unique().tolist()
    means = torch.stack([x[labels == k].mean(0) for k in classes])
    within = x - means[torch.searchsorted(labels.unique(), labels)]
    variances, axes = torch.linalg.eigh(within.T @ within / (len(x) - len(classes)))
    pairs = torch.tensor(list(combinations(range(len(classes)), 2)))
    apart = ((means[pairs[:, 0]] - means[pairs[:, 1]]) @ axes).square()
    a = alpha_bar.double()[:, None]
    distance = (apart @ (a / (a * variances.clamp_min(0) + 1 - a)).T).sqrt()
    return torch.special.erfc(distance / (2 * math.sqrt(2))).mean(0).float()


def of_data(split: Split, alpha_bar: Tensor) -> tuple[Tensor, Tensor]:
    """Return entropy and overlap of a data set's latent states, each (T,)."""
    every = slice(None, None, -(-len(split.labels) // MOST_ROWS))  # folders come sorted by class
    images, labels = to_float(split.images[every]), split.labels[every]
    return entropy(images, alpha_bar), overlap(images, labels, alpha_bar)
