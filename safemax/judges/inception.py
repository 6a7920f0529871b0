"""The network behind the standard FID: Inception v3 as TensorFlow ran it in 2015, which torchmetrics has of torch-fidelity."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import patch

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from safemax.data.dataset import Dataset, Split
from safemax.errors import InputError
from safemax.progress import bar
from safemax.storage import cache

INCEPTION_FEATURES = 2048
LEAST_SIDE = 32  # pixels: `auto` leaves out smaller images, of which the network was never shown the like
URL = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
_INSTALL = (
    "pip install '.[inception]'; beside a CPU torch its torchvision must come from the same place: "
    "pip install torchvision --index-url https://download.pytorch.org/whl/cpu"
)


@dataclass(frozen=True, eq=False)
class Moments:
    """What the Frechet distance needs of features: sums, which add up over batches, classes and processes.

    Args:
        count: N.
        total: sum of the rows, (D,) float64.
        outer: sum of their outer products, (D, D) float64.
    """

    count: int
    total: Tensor
    outer: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Moments:
        """Return the moments of features (N, D)."""
        features = features.double()
        return cls(len(features), features.sum(0), features.T @ features)

    @classmethod
    def sum_of(cls, classes: Sequence[Moments], left_out: Iterable[int] = ()) -> Moments:
        """Return the moments of all classes together, except those left out."""
        kept = [each for k, each in enumerate(classes) if k not in set(left_out)]
        return cls(
            sum(each.count for each in kept),
            torch.stack([each.total for each in kept]).sum(0),
            torch.stack([each.outer for each in kept]).sum(0),
        )

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.count + other.count, self.total + other.total, self.outer + other.outer)

    def __sub__(self, other: Moments) -> Moments:
        return Moments(self.count - other.count, self.total - other.total, self.outer - other.outer)

    def none(self) -> Moments:
        """Return the moments of no rows."""
        return Moments(0, torch.zeros_like(self.total), torch.zeros_like(self.outer))

    def to(self, device: torch.device) -> Moments:
        """Return the moments on a device."""
        return Moments(self.count, self.total.to(device), self.outer.to(device))

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Return mean, (D,), and covariance with N - 1, (D, D), in float64.

        Raises:
            InputError: fewer than two rows, or features that are not finite.
        """
        if self.count < 2 or not self.outer.isfinite().all():
            raise InputError(f"features of {self.count} rows; two or more are needed, all finite")
        mean = self.total / self.count
        return mean, (self.outer - self.count * torch.outer(mean, mean)) / (self.count - 1)


class Inception(nn.Module):
    """Pooled features of the graph that FID is defined by (Heusel et al. 2017).

    Args:
        tensors: its weights, named as in pytorch-fid and torch-fidelity.
        digest: sha256 of the weights' file, part of the key of cached features.

    Raises:
        InputError: torch-fidelity is not installed, or these are not the network's weights.
    """

    def __init__(self, tensors: dict[str, Tensor], digest: str = "") -> None:
        super().__init__()
        self.digest, self.num_features = digest, INCEPTION_FEATURES
        if find_spec("torch_fidelity") is None:
            raise InputError(f"inception needs torch-fidelity, which is not installed: {_INSTALL}")
        try:
            from torch_fidelity import feature_extractor_inceptionv3 as library
            from torchmetrics.image.fid import NoTrainInceptionV3
        except (ImportError, RuntimeError) as error:  # a torchvision built for another torch
            raise InputError(f"torch-fidelity cannot be imported ({str(error)[:100]}): {_INSTALL}") from error
        # The library's own ways to its weights are a pickle that may run code, and a download that none asked for.
        with patch.object(library, "load_state_dict_from_url", lambda *args, **kwargs: tensors):
            # TensorFlow resized without antialiasing, and so do all published FIDs.
            self.network = NoTrainInceptionV3("inception-v3-compat", [str(INCEPTION_FEATURES)], antialias=False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Return features, (N, 2048) float32, of images (N, C, H, W) uint8; one channel is repeated to three."""
        return self.network(images.expand(-1, 3, -1, -1))


def find_inception(choice: str, dataset: Dataset) -> Inception | None:
    """Return the network that an option names, on the CPU; None where there is none.

    Args:
        choice: auto (where torch-fidelity is installed and its weights lie in torch's cache, for natural images of LEAST_SIDE
            pixels or more), none, fetch (downloads the weights into torch's cache), or the path of a safetensors file.
        dataset: what it is to look at.

    Raises:
        InputError: no such file, not this network's weights, or torch-fidelity is not installed.
    """
    if choice == "none":
        return None
    if choice == "fetch":
        return _published()
    if choice != "auto":
        return load_inception(choice)
    suits = dataset.natural and dataset.image_shape[-1] >= LEAST_SIDE
    return _published() if suits and is_at_hand() else None


def is_at_hand() -> bool:
    """Return whether torch-fidelity is installed and its weights lie in torch's cache."""
    return find_spec("torch_fidelity") is not None and _published_file().is_file()


def load_inception(path: str) -> Inception:
    """Load the network from a safetensors file, on the CPU.

    Raises:
        InputError: no such file, not this network's weights, or torch-fidelity is not installed.
    """
    how = (
        "write it with safetensors.torch.save_file(torch.load('weights-inception-2015-12-05-6726825d.pth', weights_only=True), "
        "'inception.safetensors')"
    )
    try:
        digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        return Inception(load_file(path), digest)
    except InputError:
        raise
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = " ".join(f"{type(error).__name__} {error}".split())[:200]
        raise InputError(f"inception = {path!r} is not FID-Inception weights ({reason}); {how}") from error


def _published() -> Inception:
    """Return the network with the published weights, downloaded where torch's cache has none; nothing in the file is run."""
    try:
        tensors = torch.hub.load_state_dict_from_url(URL, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"inception = fetch: {URL} cannot be downloaded ({error})") from error
    return Inception(tensors, hashlib.sha256(_published_file().read_bytes()).hexdigest())


def _published_file() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / URL.rpartition("/")[2]


def extract(network: Inception, images: Tensor, batch_size: int = 64, what: str = "Inception") -> Tensor:
    """Return features of images (N, C, H, W) uint8 in batches, (N, 2048) float32 on the CPU."""
    device = next(network.parameters()).device
    batches = bar(images.split(batch_size), shown=len(images) > batch_size, desc=what, leave=False)
    return torch.cat([network(batch.to(device)).cpu() for batch in batches])


def by_class(network: Inception, split: Split, data: str, class_names: Sequence[str]) -> tuple[Moments, ...]:
    """Return the moments of the features of all of a split's images, one a class; computed once, then cached class by class.

    Args:
        network: from find_inception.
        split: the training images: FID is taken against all of them.
        data: digest of the data set.
        class_names: of the labels 0 to K - 1.
    """
    moments = []
    for k, name in enumerate(class_names):
        facts = {"data": data, "inception": network.digest, "class": k, "library": "torchmetrics", "moments": 1}
        path = cache.folder("references") / f"inception-{cache.key(facts)}.safetensors"
        saved = cache.load_or_create(path, partial(_of_class, network, split, k, name))
        moments.append(Moments(int(saved["count"]), saved["total"], saved["outer"]))
    return tuple(moments)


def _of_class(network: Inception, split: Split, k: int, name: str) -> dict[str, Tensor]:
    part = Moments.of(extract(network, split.images[split.labels == k], what=f"Inception on real {name}"))
    return {"count": torch.tensor(part.count), "total": part.total, "outer": part.outer}
