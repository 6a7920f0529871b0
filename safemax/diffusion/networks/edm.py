"""EDM's networks for labels, DDPM++ and NCSN++, preconditioned, as a denoiser that predicts the noise of discrete steps.

Sources: Karras et al., arXiv:2206.00364 (preconditioning, table 1); Song et al., arXiv:2011.13456 (the networks). diffusers'
UNet2DModel cannot express them: it adds the label after the layers of the step's embedding, where these add it before, and has
no such order of blocks. The blocks themselves are diffusers'.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import ConfigMixin
from diffusers import ModelMixin as ModelMixin  # a pipeline that loads from this module looks here for it too
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import FirDownsample2D, ResnetBlock2D
from torch import Tensor, nn
from torch.nn.functional import silu

_EPS = 1e-6  # of every group normalisation
_FOURIER_SCALE = 16.0  # of the random frequencies of NCSN++
_LONGEST = 10_000  # the longest period of DDPM++'s frequencies
_NEAR_ZERO = 1e-5  # factor of the initial weights of the layers that end a block
_ATTENTION = math.sqrt(0.2)  # factor of the initial weights of queries, keys and values


@dataclass(frozen=True)
class Stage:
    """A block of the network.

    Args:
        name: as in NVlabs' code, such as 32x32_block0.
        inputs: channels.
        outputs: channels.
        way: "up" or "down" where it changes the side, else "".
        attends: whether attention follows.
        joins: channels of them that come from the encoder.
    """

    name: str
    inputs: int
    outputs: int
    way: str = ""
    attends: bool = False
    joins: int = 0


class EDMUNet(ModelMixin, ConfigMixin):
    """A class-conditional network of EDM, in x_t and t of a discrete schedule.

    With sigma = sqrt((1 - alpha_bar_t) / alpha_bar_t) and x = x_t / sqrt(alpha_bar_t), which is an image with noise of
    deviation sigma, EDM's denoiser is D = c_skip x + c_out F(c_in x, log(sigma) / 4, c), and eps = (x - D) / sigma. Solved for
    F, so that no difference of close numbers is divided by a small sigma:

        eps = sigma x / (sigma^2 + sigma_data^2) - sigma_data F / sqrt(sigma^2 + sigma_data^2)

    A label is a row of a table that is added to the embedding of the noise before its two layers. EDM has no row for the null
    label; where `num_class_embeds` is one more than the classes, the last row is that.

    Args:
        sample_size: side of an image.
        in_channels: of an image.
        out_channels: the same.
        num_class_embeds: rows of the table of labels.
        variant: "ddpmpp" or "ncsnpp".
        model_channels: of the first layer.
        block_out_channels: of each level; the side halves from one to the next.
        layers_per_block: blocks of a level of the encoder.
        attention_sizes: sides at which blocks attend.
        dropout: within blocks.
        sigma_data: deviation of the images' pixels in [-1, 1].
    """

    _supports_gradient_checkpointing = True

    alpha_bar: Tensor
    frequencies: Tensor

    @register_to_config
    def __init__(
        self,
        sample_size: int = 32,
        in_channels: int = 3,
        out_channels: int = 3,
        num_class_embeds: int = 10,
        variant: str = "ddpmpp",
        model_channels: int = 128,
        block_out_channels: tuple[int, ...] = (256, 256, 256),
        layers_per_block: int = 4,
        attention_sizes: tuple[int, ...] = (16,),
        dropout: float = 0.13,
        sigma_data: float = 0.5,
    ) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        residual, width = variant == "ncsnpp", 4 * model_channels
        noise = model_channels * (2 if residual else 1)
        frequencies = _random_frequencies(noise // 2) if residual else _falling_frequencies(noise // 2)
        self.register_buffer("frequencies", frequencies)
        self.register_buffer("alpha_bar", torch.empty(0), persistent=False)  # the model's schedule; see `follow`
        self.class_embedding = nn.Embedding(num_class_embeds, noise)
        self.time_embedding = nn.Sequential(nn.Linear(noise, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.conv_in = nn.Conv2d(in_channels, model_channels, 3, padding=1)
        options: dict[str, Any] = {"width": width, "dropout": dropout, "kernel": "fir" if residual else "sde_vp"}
        sizes = block_out_channels, layers_per_block, tuple(attention_sizes)
        self.encoder = nn.ModuleDict({each.name: _Block(each, **options) for each in _encoder(self.config, *sizes)})
        self.residual = nn.ModuleDict(_residual_inputs(self.config, block_out_channels) if residual else {})
        self.decoder = nn.ModuleDict({each.name: _Block(each, **options) for each in _decoder(self.config, *sizes)})
        self.norm_out = _norm(block_out_channels[0])
        self.conv_out = nn.Conv2d(block_out_channels[0], out_channels, 3, padding=1)
        _initialize(self)

    def follow(self, alpha_bar: Tensor) -> None:
        """Take t as the steps of a schedule, alpha_bar (T,)."""
        self.alpha_bar = alpha_bar.float().to(self.frequencies.device)

    def forward(
        self, sample: Tensor, timestep: Tensor, class_labels: Tensor, return_dict: bool = True
    ) -> tuple[Tensor] | dict[str, Tensor]:
        """Return eps, (N, C, H, W), in a tuple or under "sample".

        Args:
            sample: x_t, (N, C, H, W).
            timestep: t, (N,) int64; `follow` says of which schedule.
            class_labels: c, (N,) int64.
            return_dict: whether to return a dict.
        """
        alpha_bar = self.alpha_bar[timestep.expand(len(sample))].view(-1, 1, 1, 1)
        sigma, sigma_data = ((1 - alpha_bar) / alpha_bar).sqrt(), self.config.sigma_data
        x, variance = sample / alpha_bar.sqrt(), sigma.square() + sigma_data**2
        raw = self.raw(x / variance.sqrt(), sigma.flatten().log() / 4, class_labels)
        eps = x * sigma / variance - sigma_data / variance.sqrt() * raw
        return {"sample": eps} if return_dict else (eps,)

    def raw(self, x: Tensor, c_noise: Tensor, class_labels: Tensor) -> Tensor:
        """Return F, the network without its preconditioning, (N, C, H, W), for c_noise (N,)."""
        angles = c_noise.outer(self.frequencies)
        emb = torch.cat([angles.sin(), angles.cos()], dim=1) + self.class_embedding(class_labels)
        emb = self.time_embedding(emb)
        given, x = x, self.conv_in(x)
        skips = [x]
        for name, block in self.encoder.items():
            x = self._run(block, x, emb)
            if name in self.residual:
                x = given = (x + self.residual[name](given)) / math.sqrt(2)
            skips.append(x)
        for block in self.decoder.values():
            x = self._run(block, torch.cat([x, skips.pop()], dim=1) if block.joins else x, emb)
        return self.conv_out(silu(self.norm_out(x)))

    def _run(self, block: nn.Module, x: Tensor, emb: Tensor) -> Tensor:
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(block, x, emb)
        return block(x, emb)


class _Block(nn.Module):
    """A residual block, with attention or without; both sums are divided by sqrt(2)."""

    def __init__(self, stage: Stage, *, width: int, dropout: float, kernel: str) -> None:
        super().__init__()
        self.joins = stage.joins > 0
        self.resnet = ResnetBlock2D(
            in_channels=stage.inputs, out_channels=stage.outputs, temb_channels=width, dropout=dropout, eps=_EPS,
            groups=_groups(stage.inputs), groups_out=_groups(stage.outputs), skip_time_act=True, kernel=kernel,
            output_scale_factor=math.sqrt(2), up=stage.way == "up", down=stage.way == "down",
            use_in_shortcut=bool(stage.way) or stage.inputs != stage.outputs,
        )  # fmt: skip
        self.attentions = nn.ModuleList([_attention(stage.outputs)] if stage.attends else [])

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        x = self.resnet(x, emb)
        for attention in self.attentions:
            x = attention(x)
        return x


def _encoder(config: Any, widths: tuple[int, ...], layers: int, attends_at: tuple[int, ...]) -> Iterator[Stage]:
    now = config.model_channels
    for level, width in enumerate(widths):
        side = config.sample_size >> level
        if level:
            yield Stage(f"{side}x{side}_down", now, now, "down")
        for number in range(layers):
            yield Stage(f"{side}x{side}_block{number}", now, width, attends=side in attends_at)
            now = width


def _decoder(config: Any, widths: tuple[int, ...], layers: int, attends_at: tuple[int, ...]) -> Iterator[Stage]:
    skips = [config.model_channels, *(each.outputs for each in _encoder(config, widths, layers, attends_at))]
    now = widths[-1]
    for level, width in reversed(list(enumerate(widths))):
        side = config.sample_size >> level
        if level == len(widths) - 1:
            yield Stage(f"{side}x{side}_in0", now, now, attends=True)
            yield Stage(f"{side}x{side}_in1", now, now)
        else:
            yield Stage(f"{side}x{side}_up", now, now, "up")
        for number in range(layers + 1):
            joins = skips.pop()
            attends = number == layers and side in attends_at
            yield Stage(f"{side}x{side}_block{number}", now + joins, width, attends=attends, joins=joins)
            now = width


def _residual_inputs(config: Any, widths: tuple[int, ...]) -> dict[str, nn.Module]:
    """Return what brings the image, filtered and halved, into each further level of NCSN++'s encoder."""
    inputs, layers = [config.in_channels, *widths], {}
    for level in range(1, len(widths)):
        side = config.sample_size >> level
        layers[f"{side}x{side}_down"] = FirDownsample2D(inputs[level - 1], inputs[level], use_conv=True)
    return layers


def _attention(channels: int) -> Attention:
    return Attention(
        channels, heads=1, dim_head=channels, eps=_EPS, norm_num_groups=_groups(channels), residual_connection=True,
        rescale_output_factor=math.sqrt(2), bias=True,
    )  # fmt: skip


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(_groups(channels), channels, eps=_EPS)


def _groups(channels: int) -> int:
    return min(32, channels // 4)


def _falling_frequencies(count: int) -> Tensor:
    return (1 / _LONGEST) ** (torch.arange(count, dtype=torch.float32) / (count - 1))


def _random_frequencies(count: int) -> Tensor:
    return 2 * math.pi * _FOURIER_SCALE * torch.randn(count)


def _initialize(network: EDMUNet) -> None:
    """Give weights their initial values: Xavier's, small where a block ends, and no bias."""
    for name, layer in network.named_modules():
        if not isinstance(layer, nn.Conv2d | nn.Linear):
            continue
        ends, asks = name.endswith(("conv2", "to_out.0", "conv_out")), name.endswith(("to_q", "to_k", "to_v"))
        nn.init.xavier_uniform_(layer.weight, gain=_NEAR_ZERO if ends else _ATTENTION if asks else 1.0)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
