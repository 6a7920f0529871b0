"""The judges: classifiers of images, some of which can answer "none of these"."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from safemax.data.batches import to_float
from safemax.data.dataset import Split
from safemax.errors import InputError
from safemax.judges import networks
from safemax.judges.negatives import diffused

REJECT = "reject"


class Judge(nn.Module):
    """A classifier of images, with a last class "none of these" where `reject` is true.

    Args:
        arch: a name of networks.ARCHITECTURES.
        class_names: the K real classes in the order of their labels.
        image_shape: (C, H, W) of the images it judges.
        reject: whether index K stands for "none of these".
        pixel_mean, pixel_std: per channel, before the network, x in [-1, 1] becomes (x - mean) / std; (0,), (1,) leaves it.
        config: of the architecture of a hub classifier or of CLIP (safemax.judges.hub_classifier, zero_shot); None for others.

    Attributes:
        temperature: by which `predict` divides the logits, so that confidence means something; it changes no answer.
    """

    mean: Tensor
    std: Tensor
    temperature: float = 1.0

    def __init__(
        self,
        arch: str,
        class_names: Sequence[str],
        image_shape: tuple[int, int, int],
        *,
        reject: bool = False,
        pixel_mean: Sequence[float] = (0.0,),
        pixel_std: Sequence[float] = (1.0,),
        config: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.arch, self.class_names, self.image_shape = arch, tuple(class_names), image_shape
        self.reject, self.num_classes, self.config = reject, len(class_names), config
        self.network = networks.build(arch, image_shape, self.num_classes + reject, config)
        self.register_buffer("mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    @property
    def answers(self) -> tuple[str, ...]:
        """The names of the K or K + 1 outputs."""
        return self.class_names + (REJECT,) * self.reject

    def features(self, x: Tensor) -> Tensor:
        """Return penultimate features, (N, D) float32, of images (N, C, H, W) float32 in [-1, 1]."""
        return self.network((x - self.mean) / self.std)

    def classify(self, features: Tensor) -> Tensor:
        """Return logits, (N, K) or (N, K + 1) with the reject class last, of features (N, D)."""
        return self.network.linear(features)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, (N, K) or (N, K + 1) with the reject class last, of images (N, C, H, W) in [-1, 1]."""
        return self.classify(self.features(x))


class Ensemble(Judge):
    """Several judges of the same answers that vote by the mean of their probabilities; their features stand side by side.

    Raises:
        InputError: there is no judge, or two of them have different answers.
    """

    def __init__(self, judges: Sequence[Judge]) -> None:
        if len({judge.answers for judge in judges}) != 1:
            raise InputError(
                f"an ensemble needs judges with the same answers, got {[judge.answers for judge in judges]}"
            )
        nn.Module.__init__(self)
        first = judges[0]
        self.judges = nn.ModuleList(judges)
        self.arch, self.config = "+".join(judge.arch for judge in judges), None
        self.class_names, self.image_shape = first.class_names, first.image_shape
        self.reject, self.num_classes = first.reject, first.num_classes

    def features(self, x: Tensor) -> Tensor:
        """Return the features of all the judges, (N, D1 + D2 + ...)."""
        return torch.cat([judge.features(x) for judge in self.members], dim=1)

    def classify(self, features: Tensor) -> Tensor:
        """Return log-probabilities, so that their softmax is the mean of the judges' softmaxes."""
        widths = [judge.network.linear.in_features for judge in self.members]
        parts = zip(self.members, features.split(widths, dim=1), strict=True)
        votes = torch.stack([judge.classify(part).log_softmax(dim=1) for judge, part in parts])
        return votes.logsumexp(dim=0) - math.log(len(widths))

    @property
    def members(self) -> list[Judge]:
        """The judges that vote."""
        return [judge for judge in self.judges if isinstance(judge, Judge)]


@torch.no_grad()
def predict(judge: Judge, images: Tensor, batch_size: int = 512) -> tuple[Tensor, Tensor]:
    """Judge images in batches, on the judge's device and in eval mode.

    Args:
        judge: left in eval mode.
        images: (N, C, H, W) float32 in [-1, 1], on any device.
        batch_size: images a forward pass.

    Returns:
        Probabilities, (N, K) or (N, K + 1), and features, (N, D); both float32 on the CPU.
    """
    judge.eval()
    device = next(judge.parameters()).device
    features = [judge.features(batch.to(device)) for batch in images.split(batch_size)]
    probs = [(judge.classify(part) / judge.temperature).softmax(dim=1) for part in features]
    return torch.cat(probs).cpu(), torch.cat(features).cpu()


def accuracy(judge: Judge, split: Split) -> float:
    """Return the share of a split's images that the judge classifies correctly, in percent; a rejection is an error."""
    return 100 * _hits(judge, split).mean().item()


def accuracy_by_class(judge: Judge, split: Split) -> dict[str, float]:
    """Return `accuracy` of each class that occurs in the split, by name."""
    hits = _hits(judge, split)
    return {judge.class_names[c]: 100 * hits[split.labels == c].mean().item() for c in split.labels.unique().tolist()}


def _hits(judge: Judge, split: Split) -> Tensor:
    answers = [predict(judge, to_float(images))[0].argmax(dim=1) for images in split.images.split(4096)]
    return (torch.cat(answers) == split.labels.cpu()).double()


def noise_histogram(
    judge: Judge, n: int = 500, seed: int = 0, *, images: Tensor | None = None
) -> dict[str, dict[str, float]]:
    """Return how a judge classifies pure noise: a class that attracts noise has no valid UA.

    Args:
        judge: any judge; its image_shape is the shape of the noise.
        n: images of each law.
        seed: of the noise.
        images: real images, float32 in [-1, 1]; with them, "diffused" shows them drowned in noise.

    Returns:
        Shares in percent by answer (class names and "reject"), for the laws "gaussian" (N(0, 1) clamped), "uniform",
        "salt_pepper" (-1 or 1) and "diffused" (x_t at alpha_bar of at most 0.005, clamped).
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (n, *judge.image_shape)
    laws = {
        "gaussian": torch.randn(shape, generator=generator).clamp(-1, 1),
        "uniform": 2 * torch.rand(shape, generator=generator) - 1,
        "salt_pepper": torch.randn(shape, generator=generator).sign(),
    }
    if images is not None:
        rows = torch.randint(len(images), (n,), generator=generator)
        laws["diffused"] = diffused(images[rows], images[rows], generator)
    return {law: _answer_shares(judge, noise) for law, noise in laws.items()}


def _answer_shares(judge: Judge, images: Tensor) -> dict[str, float]:
    counts = predict(judge, images)[0].argmax(dim=1).bincount(minlength=len(judge.answers))
    return dict(zip(judge.answers, (100 * counts.double() / len(images)).tolist(), strict=True))
