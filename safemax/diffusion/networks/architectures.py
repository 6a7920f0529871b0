"""Networks by name, which of them fits images of a size, and what its training costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiTTransformer2DModel, UNet2DModel
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from safemax.diffusion.networks.edm import EDMUNet
from safemax.errors import unknown

# Two levels with attention at half resolution: 465 k parameters for 8x8 grey images, 0.1 s a training step of 128 on one core.
SMALL: dict[str, Any] = {
    "block_out_channels": (32, 48),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 8,
    "attention_head_dim": None,
}
# Three levels, 28 -> 14 -> 7, with attention at half resolution: 1.75 M parameters, a 25th of ddpm's work at 28x28.
MEDIUM = SMALL | {
    "block_out_channels": (32, 64, 96),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
}
# Four levels, 64 -> 32 -> 16 -> 8, with attention at a quarter of the resolution: 3.6 M parameters.
DEEP = SMALL | {
    "block_out_channels": (32, 64, 96, 128),
    "down_block_types": ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
}
# The DDPM of Ho et al. (2020) that SA, SalUn and SAFEMax unlearn: 35.75 M parameters at 3x32x32 with ten classes and the
# null label. attention_head_dim None means one head, as in the official network; diffusers' default of 8 is another network.
DDPM: dict[str, Any] = {
    "block_out_channels": (128, 256, 256, 256),
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "downsample_padding": 0,
    "dropout": 0.1,
    "attention_head_dim": None,
    "norm_eps": 1e-6,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
}
# A transformer on patches: four blocks of width 64, 385 k parameters; `build` chooses the patches.
DIT: dict[str, Any] = {"num_layers": 4, "num_attention_heads": 4, "attention_head_dim": 16}
ARCHITECTURES = {"small": SMALL, "medium": MEDIUM, "deep": DEEP, "ddpm": DDPM}

_SHAPE = ("block_out_channels", "layers_per_block", "down_block_types")
_CPU = 80e9  # operations a second: ddpm at 32x32 takes 13 hours for 800 steps of 128 rows on a machine of today


def fitting(size: int) -> str:
    """Return the name of the network for images of a size: small to 16 pixels, ddpm at the paper's 32, else in between."""
    if size <= 16:
        return "small"
    if size == 32 or size > 64:
        return "ddpm"
    return "medium" if size < 40 else "deep"


def build(architecture: str, channels: int, size: int, num_classes: int) -> UNet2DModel | DiTTransformer2DModel:
    """Return an untrained network with a null label; its initial weights follow torch's global seed.

    Args:
        architecture: a name of ARCHITECTURES, dit, or auto, which fits the size.
        channels: of an image.
        size: side of an image.
        num_classes: K, the null label not counted.
    """
    if architecture == "dit":
        patch = next(p for p in range(2, size + 1) if size % p == 0 and size // p <= 16)
        return DiTTransformer2DModel(
            sample_size=size, in_channels=channels, num_embeds_ada_norm=num_classes, patch_size=patch, **DIT
        )
    if architecture == "auto":
        architecture = fitting(size)
    if architecture not in ARCHITECTURES:
        raise unknown("architecture", architecture, ["auto", *ARCHITECTURES, "dit"])
    return UNet2DModel(
        sample_size=size, in_channels=channels, out_channels=channels, num_class_embeds=num_classes + 1,
        **ARCHITECTURES[architecture],
    )  # fmt: skip


def name_of(denoiser: Any) -> str:
    """Return the name of a network's architecture, `custom` for one that has none here."""
    if isinstance(denoiser, EDMUNet):
        return "edm"
    is_dit = isinstance(denoiser, DiTTransformer2DModel)
    known, keys = ({"dit": DIT}, tuple(DIT)) if is_dit else (ARCHITECTURES, _SHAPE)
    shape = [_as_tuple(denoiser.config[key]) for key in keys]
    return next((name for name, each in known.items() if [each[key] for key in keys] == shape), "custom")


@dataclass(frozen=True)
class Cost:
    """What a network costs.

    Args:
        parameters: their number.
        operations: floating-point operations to denoise one image once.
    """

    parameters: int
    operations: int

    def training_hours(self, steps: int, rows: int) -> float:
        """Return about how many hours of a CPU a training of so many steps of so many rows takes."""
        return 3 * self.operations * steps * rows / _CPU / 3600  # a backward pass costs two forward passes

    @classmethod
    def of(cls, denoiser: Any, side: int, inputs: Mapping[str, Tensor]) -> Cost:
        """Count without computing anything.

        Args:
            denoiser: the network.
            side: of what it denoises, images or latents.
            inputs: its further arguments for one row, besides x_t and t.
        """
        with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
            twin = type(denoiser).from_config(denoiser.config)
            step, further = torch.zeros(1, dtype=torch.int64), {name: each.to("meta") for name, each in inputs.items()}
            twin(torch.empty(1, denoiser.config.in_channels, side, side), step, **further)
        return cls(sum(each.numel() for each in denoiser.parameters()), counter.get_total_flops())


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value
