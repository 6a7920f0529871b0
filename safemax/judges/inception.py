"""The network behind the standard FID: Inception v3 as TensorFlow ran it in 2015, with weights given by path."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm import tqdm

from safemax.data.dataset import Split
from safemax.errors import InputError
from safemax.storage import cache

SIDE = 299
# TensorFlow's average leaves the padding out.
_AVERAGE = partial(F.avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=False)
_MAX = partial(F.max_pool2d, kernel_size=3, stride=1, padding=1)
_HALVE = partial(F.max_pool2d, kernel_size=3, stride=2)
_HOW = (
    "make the file by safetensors.torch.save_file(torch.load('pt_inception-2015-12-05-6726825d.pth', weights_only=True), "
    "'inception.safetensors')"
)


class Conv(nn.Module):
    """A convolution without bias, batch normalisation and ReLU; padded to keep the size where the stride is 1."""

    def __init__(
        self, width_in: int, width: int, kernel: int | tuple[int, int], stride: int = 1, *, pad: bool = True
    ) -> None:
        super().__init__()
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (sides[0] // 2, sides[1] // 2) if pad and stride == 1 else (0, 0)
        self.conv = nn.Conv2d(width_in, width, sides, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(width, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        """Return the activations."""
        return F.relu(self.bn(self.conv(x)))


class Mixed(nn.Module):
    """Paths side by side, their channels concatenated; the last of them is pooled.

    Args:
        width_in: channels of the input.
        pool: of the last path, which ends in the convolution branch_pool where there is one.
        convs: width, kernel and stride by the published name: PATH, or PATH_1, PATH_2, ... in a row, _3a parallel to _3b.
    """

    def __init__(self, width_in: int, pool: Callable[[Tensor], Tensor], **convs: tuple) -> None:
        super().__init__()
        self.pool, self.paths = pool, [list(names) for _, names in groupby(convs, lambda name: name.rsplit("_", 1)[0])]
        for names in self.paths:
            width = width_in
            for _, parallel in groupby(names, lambda name: name.rstrip("ab")):
                for name in (last := list(parallel)):
                    self.add_module(name, Conv(width, *convs[name]))
                width = convs[last[-1]][0]

    def forward(self, x: Tensor) -> Tensor:
        """Return all paths' channels."""
        parts = [self._path(names, x) for names in self.paths if names != ["branch_pool"]]
        pooled = self.pool(x)
        return torch.cat(
            [*parts, self.get_submodule("branch_pool")(pooled) if ["branch_pool"] in self.paths else pooled], dim=1
        )

    def _path(self, names: Sequence[str], x: Tensor) -> Tensor:
        for _, parallel in groupby(names, lambda name: name.rstrip("ab")):
            x = torch.cat([self.get_submodule(name)(x) for name in parallel], dim=1)
        return x


def _a(width_in: int, width_pool: int) -> Mixed:
    return Mixed(
        width_in, _AVERAGE, branch1x1=(64, 1), branch5x5_1=(48, 1), branch5x5_2=(64, 5), branch3x3dbl_1=(64, 1),
        branch3x3dbl_2=(96, 3), branch3x3dbl_3=(96, 3), branch_pool=(width_pool, 1),
    )  # fmt: skip


def _b() -> Mixed:
    return Mixed(
        288, _HALVE, branch3x3=(384, 3, 2), branch3x3dbl_1=(64, 1), branch3x3dbl_2=(96, 3), branch3x3dbl_3=(96, 3, 2)
    )


def _c(width: int) -> Mixed:
    wide, tall = (1, 7), (7, 1)
    return Mixed(
        768, _AVERAGE, branch1x1=(192, 1), branch7x7_1=(width, 1), branch7x7_2=(width, wide), branch7x7_3=(192, tall),
        branch7x7dbl_1=(width, 1), branch7x7dbl_2=(width, tall), branch7x7dbl_3=(width, wide),
        branch7x7dbl_4=(width, tall), branch7x7dbl_5=(192, wide), branch_pool=(192, 1),
    )  # fmt: skip


def _d() -> Mixed:
    return Mixed(
        768, _HALVE, branch3x3_1=(192, 1), branch3x3_2=(320, 3, 2), branch7x7x3_1=(192, 1),
        branch7x7x3_2=(192, (1, 7)), branch7x7x3_3=(192, (7, 1)), branch7x7x3_4=(192, 3, 2),
    )  # fmt: skip


def _e(width_in: int, pool: Callable[[Tensor], Tensor]) -> Mixed:
    wide, tall = (384, (1, 3)), (384, (3, 1))
    return Mixed(
        width_in, pool, branch1x1=(320, 1), branch3x3_1=(384, 1), branch3x3_2a=wide, branch3x3_2b=tall,
        branch3x3dbl_1=(448, 1), branch3x3dbl_2=(384, 3), branch3x3dbl_3a=wide, branch3x3dbl_3b=tall,
        branch_pool=(192, 1),
    )  # fmt: skip


class Inception(nn.Module):
    """Pooled features of the graph that FID is defined by (Heusel et al. 2017); tensors named as in pytorch-fid and torch-fidelity.

    Args:
        digest: sha256 of the weights' file, part of the key of cached features.
    """

    def __init__(self, digest: str = "") -> None:
        super().__init__()
        self.digest = digest
        self.Conv2d_1a_3x3 = Conv(3, 32, 3, 2)
        self.Conv2d_2a_3x3 = Conv(32, 32, 3, pad=False)
        self.Conv2d_2b_3x3 = Conv(32, 64, 3)
        self.Conv2d_3b_1x1 = Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = Conv(80, 192, 3, pad=False)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _a(192, 32), _a(256, 64), _a(288, 64)
        self.Mixed_6a = _b()
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = _c(128), _c(160), _c(160), _c(192)
        self.Mixed_7a = _d()
        # The second of these takes the largest neighbour where the paper has the mean: so does the graph.
        self.Mixed_7b, self.Mixed_7c = _e(1280, _AVERAGE), _e(2048, _MAX)

    def forward(self, images: Tensor) -> Tensor:
        """Return features, (N, 2048) float32, of images (N, C, H, W) uint8; one channel is repeated to three."""
        x = (_resized(images.expand(-1, 3, -1, -1).float()) - 128) / 128
        x = _HALVE(self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x))))
        x = _HALVE(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)))
        for name, block in self.named_children():
            x = block(x) if name.startswith("Mixed") else x
        return x.mean(dim=(2, 3))


def _resized(x: Tensor) -> Tensor:
    """Resize bilinearly as TensorFlow 1 did: pixel i is taken from i * size / SIDE, corners and centres not aligned."""
    rows, columns = (_interpolation(size).to(x) for size in x.shape[2:])
    return rows @ x @ columns.T


def _interpolation(size: int) -> Tensor:
    place = torch.arange(SIDE) * torch.tensor(size / SIDE, dtype=torch.float32)
    below = place.long()
    matrix, each = torch.zeros(SIDE, size), torch.arange(SIDE)
    matrix[each, below] = 1 - (place - below)
    matrix[each, (below + 1).clamp(max=size - 1)] += place - below
    return matrix


def load_inception(path: str) -> Inception:
    """Load the network from a safetensors file, on the CPU in eval mode, without its classifier.

    Raises:
        InputError: no such file, or not this network's weights.
    """
    try:
        digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        tensors = {name: each for name, each in load_file(path).items() if not name.startswith("fc.")}
        network = Inception(digest)
        missing, unexpected = network.load_state_dict(tensors, strict=False)
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = " ".join(f"{type(error).__name__} {error}".split())[:200]
        raise InputError(f"inception = {path!r} is not FID-Inception weights ({reason}); {_HOW}") from error
    # Batch normalisation counts its batches; only training reads the count.
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing or unexpected:
        differs = f"missing keys {missing[:3]}, unexpected keys {unexpected[:3]}"
        raise InputError(f"inception = {path!r} is another network: {differs}; {_HOW}")
    return network.requires_grad_(False).eval()


def extract(network: Inception, images: Tensor, batch_size: int = 64, what: str = "Inception") -> Tensor:
    """Return features of images (N, C, H, W) uint8 in batches, (N, 2048) float32 on the CPU."""
    device = next(network.parameters()).device
    batches = tqdm(images.split(batch_size), desc=what, disable=len(images) <= batch_size)
    return torch.cat([network(batch.to(device)).cpu() for batch in batches])


def by_class(network: Inception, split: Split, data: str, class_names: Sequence[str]) -> tuple[Tensor, ...]:
    """Return the features of all of a split's images, a tensor (N_k, 2048) a class; computed once, then cached class by class.

    Args:
        network: from load_inception.
        split: the training images: FID is taken against all of them.
        data: digest of the data set.
        class_names: of the labels 0 to K - 1.
    """
    features = []
    for k, name in enumerate(class_names):
        facts = {"data": data, "inception": network.digest, "class": k}
        path = cache.folder("references") / f"inception-{cache.key(facts)}.safetensors"
        features.append(cache.load_or_create(path, partial(_of_class, network, split, k, name))["features"])
    return tuple(features)


def _of_class(network: Inception, split: Split, k: int, name: str) -> dict[str, Tensor]:
    return {"features": extract(network, split.images[split.labels == k], what=f"Inception on real {name}")}
