"""The networks behind the judges; each maps images to penultimate features and holds the linear head over them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from safemax.errors import InputError, unknown

RESNET34_INPUT = 224
WHITENED = {"whitened": (32, 128, 128), "whitened_wide": (64, 256, 256)}  # channels of the three stages
PATCH, WHITENING_FLOOR = (
    2,
    1.25e-4,
)  # side of the patches that the first layer whitens; least variance that it scales up
CIFAR_BLOCKS = {
    "resnet20": 3,
    "resnet32": 5,
    "resnet44": 7,
    "resnet56": 9,
    "resnet110": 18,
}  # blocks a stage: depth 6n + 2
ARCHITECTURES = ("small", *WHITENED, *CIFAR_BLOCKS, "resnet34")


class Network(nn.Module):
    """A feature extractor, (N, C, H, W) to (N, D), and its linear head, (N, D) to (N, outputs)."""

    linear: nn.Linear

    def levels(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return features, (N, D), and what a few levels of the network saw, (N, channels, positions...), the first one first."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Return features, (N, D)."""
        return self.levels(x)[0]


class Small(Network):
    """Three convolutions and one hidden layer of 64 features, 0.12 M weights; for 8x8, it sees larger images at half size.

    Its features are not negative.
    """

    def __init__(self, channels: int, size: int, outputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_conv(channels, 32, stride=1 if size < 16 else 2),
            *_conv(32, 64, stride=2),
            *_conv(64, 64, stride=1),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Linear(64 * 16, 64),
            nn.ReLU(),
        )
        self.linear = nn.Linear(64, outputs)

    def levels(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return features, (N, 64), and the three convolutions' maps."""
        maps = []
        for layer in self.body:
            x = layer(x)
            if isinstance(layer, nn.ReLU) and x.ndim == 4:
                maps.append(x)
        return x, maps


def _conv(width_in: int, width_out: int, stride: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(width_in, width_out, 3, stride, 1, bias=False), nn.BatchNorm2d(width_out), nn.ReLU()


class Whitened(Network):
    """A fast network in the manner of airbench (Jordan 2024, arXiv:2404.00498): whitened patches, then three stages of two layers.

    For images of 17 to 64 pixels. `whitened` has 0.5 M weights and features (N, 128), `whitened_wide` 1.9 M and (N, 256).
    Other than airbench's, its batch normalisation has gains, and its last maps are averaged.
    """

    def __init__(self, channels: int, outputs: int, widths: tuple[int, int, int]) -> None:
        super().__init__()
        patches = 2 * channels * PATCH**2
        self.whitening = nn.Conv2d(channels, patches, PATCH)
        self.whitening.requires_grad_(requires_grad=False)
        pairs = zip((patches, *widths), widths, strict=False)
        self.stages = nn.ModuleList(_stage_of_two(width_in, width_out) for width_in, width_out in pairs)
        self.linear = nn.Linear(widths[-1], outputs)

    def levels(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return features, (N, 128) or (N, 256), and the maps of the whitened patches and of the three stages."""
        maps = [F.gelu(self.whitening(x))]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps[-1].mean(dim=(2, 3)), maps

    @torch.no_grad()
    def whiten(self, images: Tensor) -> None:
        """Let the first layer give what is uncorrelated in patches of these images (N, C, H, W), and its negative."""
        size, channels = PATCH, images.shape[1]
        patches = F.unfold(images, size).transpose(1, 2).flatten(0, 1)
        centred = patches - patches.mean(0)
        variances, directions = torch.linalg.eigh(centred.T @ centred / len(centred))
        filters = (directions / (variances + WHITENING_FLOOR).sqrt()).T.reshape(-1, channels, size, size)
        self.whitening.weight.copy_(torch.cat([filters, -filters]))
        shift = -(self.whitening.weight.flatten(1) @ patches.mean(0))
        self.whitening.bias.copy_(shift)  # type: ignore[union-attr]  # this layer has one


def _stage_of_two(width_in: int, width_out: int) -> nn.Sequential:
    """Return two convolutions, the first halving the picture; they begin as identities of the channels that they can pass on."""
    first, second = (nn.Conv2d(width, width_out, 3, 1, 1, bias=False) for width in (width_in, width_out))
    for each in (first, second):
        nn.init.dirac_(each.weight[: each.in_channels])
    norms = (nn.BatchNorm2d(width_out) for _ in range(2))
    return nn.Sequential(first, nn.MaxPool2d(2), next(norms), nn.GELU(), second, next(norms), nn.GELU())


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters (option A of He et al. 2016, section 4.2)."""

    def __init__(self, width_in: int, width_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width_out)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width_out)
        self.stride = stride
        self.pad = (width_out - width_in) // 2

    def forward(self, x: Tensor) -> Tensor:
        """Halve the picture and double the channels where the stride is 2."""
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad, self.pad))
        return F.relu(out + shortcut)


class CifarResNet(Network):
    """He et al.'s ResNet for 32x32 (arXiv:1512.03385, section 4.2): depth 6n + 2, widths 16, 32 and 64, 64 features.

    The names of its tensors are those of akamaster/pytorch_resnet_cifar10, so that published weights load.
    """

    def __init__(self, channels: int, outputs: int, blocks: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks, stride=1)
        self.layer2 = _stage(16, 32, blocks, stride=2)
        self.layer3 = _stage(32, 64, blocks, stride=2)
        self.linear = nn.Linear(64, outputs)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def levels(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return features, (N, 64), not negative, and the maps of the first convolution and of the three stages."""
        maps = [F.relu(self.bn1(self.conv1(x)))]
        for stage in (self.layer1, self.layer2, self.layer3):
            maps.append(stage(maps[-1]))
        return maps[-1].mean(dim=(2, 3)), maps


def _stage(width_in: int, width_out: int, blocks: int, stride: int) -> nn.Sequential:
    rest = (BasicBlock(width_out, width_out, 1) for _ in range(blocks - 1))
    return nn.Sequential(BasicBlock(width_in, width_out, stride), *rest)


class ResNet34(Network):
    """The paper's judge: ResNet-34 at 224x224 from transformers, 21.3 million weights, 512 features.

    Images are resized as PIL does (bilinear, antialiased); grey ones are repeated to three channels, which ImageNet weights expect.
    """

    def __init__(self, outputs: int) -> None:
        super().__init__()
        from transformers import ResNetModel  # seconds to import, and only this network needs it

        self.body = ResNetModel(_resnet34_config())
        self.linear = nn.Linear(512, outputs)
        nn.init.xavier_normal_(self.linear.weight)

    def levels(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return features, (N, 512), not negative, and the maps of the stem and of the four stages."""
        x = F.interpolate(x, (RESNET34_INPUT, RESNET34_INPUT), mode="bilinear", antialias=True)
        output = self.body(x.expand(-1, 3, -1, -1), output_hidden_states=True)
        return output.pooler_output.flatten(1), list(output.hidden_states)

    def load_pretrained(self, source: str) -> None:
        """Replace the body's weights by those of a transformers ResNet-34 (folder or hub id, safetensors only).

        Raises:
            InputError: source does not exist, or is not a ResNet-34.
        """
        from transformers import ResNetModel

        message = f"pretrained = {source!r} is not a ResNet-34 of transformers with safetensors (folder or hub id)"
        try:
            body, report = ResNetModel.from_pretrained(
                source, config=_resnet34_config(), use_safetensors=True, output_loading_info=True
            )
        except (OSError, RuntimeError, ValueError) as error:
            raise InputError(f"{message}: {str(error).splitlines()[0]}") from error
        if report["missing_keys"]:
            raise InputError(f"{message}: {len(report['missing_keys'])} of its tensors are missing")
        self.body = body


def _resnet34_config() -> Any:
    from transformers import ResNetConfig

    return ResNetConfig(layer_type="basic", depths=[3, 4, 6, 3], hidden_sizes=[64, 128, 256, 512], embedding_size=64)


def build(
    arch: str, image_shape: tuple[int, int, int], outputs: int, config: Mapping[str, Any] | None = None
) -> Network:
    """Return an untrained network by name.

    Args:
        arch: one of ARCHITECTURES, a hub classifier's, CLIP's, or one of these with -none and a number of heads.
        image_shape: (C, H, W) of the images.
        outputs: classes, with "none of these" where the network can answer it.
        config: of a hub classifier or of CLIP.

    Raises:
        InputError: the architecture is unknown.
    """
    from safemax.judges import hub_classifier, none_head, zero_shot  # which import this module

    channels, size, _ = image_shape
    if headed := none_head.ARCH.fullmatch(arch):
        return none_head.NoneHeadNetwork(
            build(headed[1], image_shape, outputs - 1, config), image_shape, int(headed[2])
        )
    if arch == hub_classifier.ARCH:
        return hub_classifier.HubClassifier.untrained(config or {}, outputs)
    if arch == zero_shot.ARCH:
        return zero_shot.ZeroShot.untrained(config or {}, outputs)
    if arch == "small":
        return Small(channels, size, outputs)
    if arch == "resnet34":
        return ResNet34(outputs)
    if arch in WHITENED:
        return Whitened(channels, outputs, WHITENED[arch])
    if arch in CIFAR_BLOCKS:
        return CifarResNet(channels, outputs, CIFAR_BLOCKS[arch])
    raise unknown("arch", arch, ARCHITECTURES)


def infer(tensors: Mapping[str, Tensor]) -> tuple[str, int, int] | None:
    """Return (arch, channels, outputs) of a CIFAR ResNet's state dict, or None where it is something else."""
    first, last = tensors.get("conv1.weight"), tensors.get("linear.weight")
    blocks = sum(name.startswith("layer1.") and name.endswith(".conv1.weight") for name in tensors)
    arch = {n: name for name, n in CIFAR_BLOCKS.items()}.get(blocks)
    if arch is None or first is None or last is None:
        return None
    return arch, first.shape[1], last.shape[0]
