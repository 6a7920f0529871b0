"""Convert the U-Net that SA, SalUn, EraseDiff and SFR-on share into a diffusers one with the same outputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from diffusers import UNet2DModel
from torch.nn.functional import linear, silu

from safemax.diffusion import schedules
from safemax.diffusion.convert.tensors import Source, Tensors
from safemax.diffusion.model import Diffusion
from safemax.diffusion.networks.architectures import DDPM
from safemax.errors import InputError

GROUPS = 32  # of every group normalisation

# Modules of a residual and an attention block, ours and theirs. Their attention has 1x1 convolutions where ours is linear.
RESIDUAL = {
    "norm1": "norm1",
    "conv1": "conv1",
    "time_emb_proj": "temb_cemb_proj",
    "norm2": "norm2",
    "conv2": "conv2",
    "conv_shortcut": "nin_shortcut",
}
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def from_tensors(source: Source, class_names: tuple[str, ...], *, size: int = 32) -> Diffusion:
    """Return a model with the outputs of the official network (measured: they differ by 3e-6), null label included.

    That network concatenates the embeddings of step and class, which diffusers adds. Twice as wide an embedding holds both:
    the step fills its first half and the class its second, each zero in the other's half, and silu(0) = 0 keeps them apart
    up to the fused layer of every residual block. The two layers after the class table are folded into its K + 1 rows.
    Training may fill the zeros; the outputs before training are the same.

    Args:
        source: the official state dict; the widths, depths and attention levels are read off its shapes.
        class_names: the K names, in label order; the null label is added.
        size: side of the images in pixels, which the tensors do not contain.

    Raises:
        InputError: a tensor is missing, unexpected or of a wrong shape, by name.
    """
    halvings = 2 ** max(source.count(r"down\.(\d+)\.") - 1, 0)
    if size % halvings:
        raise InputError(f"size = {size} is not divisible by {halvings}, as the levels of {source.path} need")
    with source.taken_for("the official U-Net"):
        denoiser = UNet2DModel(**_config(source, len(class_names), size))
        denoiser.load_state_dict(_translated(source, denoiser))
    return Diffusion(denoiser, schedules.named("linear"), class_names).eval()


def _channels(source: Source, name: str) -> tuple[int, int]:
    """Return a convolution's numbers of output and input channels."""
    shape = source.find(name).shape
    if len(shape) != 4 or shape[0] % GROUPS:
        raise InputError(f"{name} has the shape {tuple(shape)}, not that of a convolution to a multiple of {GROUPS}")
    return shape[0], shape[1]


def _config(source: Source, num_classes: int, size: int) -> dict[str, object]:
    """Read the architecture off the shapes; what differs from DDPM is the width of the embedding."""
    width, channels = _channels(source, "conv_in.weight")
    levels = range(source.count(r"down\.(\d+)\."))
    blocks = tuple(_channels(source, f"down.{i}.block.0.conv1.weight")[0] for i in levels)
    attends = [source.count(rf"down\.{i}\.attn\.(\d+)\.") > 0 for i in levels]
    if blocks[:1] != (width,):
        raise InputError(
            f"conv_in.weight has {width} channels, its levels {blocks}; only a first level of the same width can be converted"
        )
    return DDPM | {
        "sample_size": size,
        "in_channels": channels,
        "out_channels": channels,
        "block_out_channels": blocks,
        "layers_per_block": source.count(r"down\.0\.block\.(\d+)\."),
        "down_block_types": tuple("AttnDownBlock2D" if each else "DownBlock2D" for each in attends),
        "up_block_types": tuple("AttnUpBlock2D" if each else "UpBlock2D" for each in reversed(attends)),
        "time_embedding_dim": 8 * width,
        "num_class_embeds": num_classes + 1,
    }


def _translated(source: Source, denoiser: UNet2DModel) -> Tensors:
    """Return the state dict of the denoiser."""
    target = denoiser.state_dict()
    embedding = _embeddings(source, target["conv_in.weight"].shape[0], denoiser.config.num_class_embeds - 1)
    modules = dict(_modules(len(denoiser.config.block_out_channels), denoiser.config.layers_per_block))
    for name, tensor in target.items():
        if name not in embedding:
            module, kind = name.rsplit(".", 1)
            shape = (*tensor.shape, 1, 1) if ".to_" in name and kind == "weight" else tensor.shape
            embedding[name] = source(f"{modules[module]}.{kind}", shape).view(tensor.shape)
    source.reject_unread()
    return embedding


def _modules(levels: int, layers: int) -> Iterator[tuple[str, str]]:
    """Yield the name of each module with the official one; the official levels of `up` count from the finest."""
    yield from {"conv_in": "conv_in", "conv_norm_out": "norm_out", "conv_out": "conv_out"}.items()
    for i in range(levels):
        up = f"up_blocks.{levels - 1 - i}"
        for j in range(layers):
            yield from _block(f"down_blocks.{i}", f"down.{i}", j)
        for j in range(layers + 1):
            yield from _block(up, f"up.{i}", j)
        yield f"down_blocks.{i}.downsamplers.0.conv", f"down.{i}.downsample.conv"
        yield f"{up}.upsamplers.0.conv", f"up.{i}.upsample.conv"
    yield from _parts("mid_block.attentions.0", "mid.attn_1", ATTENTION)
    for j in range(2):
        yield from _parts(f"mid_block.resnets.{j}", f"mid.block_{j + 1}", RESIDUAL)


def _block(ours: str, theirs: str, j: int) -> Iterator[tuple[str, str]]:
    yield from _parts(f"{ours}.resnets.{j}", f"{theirs}.block.{j}", RESIDUAL)
    yield from _parts(f"{ours}.attentions.{j}", f"{theirs}.attn.{j}", ATTENTION)


def _parts(ours: str, theirs: str, names: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    return ((f"{ours}.{mine}", f"{theirs}.{other}") for mine, other in names.items())


def _embeddings(source: Source, width: int, num_classes: int) -> Tensors:
    """Return the step's layers, zero beyond the first half of the embedding, and the class table, zero in that half."""
    half = 4 * width
    first, second = torch.zeros(2 * half, width), torch.zeros(2 * half, 2 * half)
    first[:half] = source("temb.dense.0.weight", (half, width))
    second[:half, :half] = source("temb.dense.1.weight", (half, half))
    biases = [torch.cat([source(f"temb.dense.{i}.bias", (half,)), torch.zeros(half)]) for i in range(2)]
    classes = source("classes_emb.weight", (num_classes, width))
    table = torch.cat([classes, source("null_classes_emb", (width,))[None]])
    for i, inputs in enumerate((width, half)):
        weight, bias = source(f"cemb.dense.{i}.weight", (half, inputs)), source(f"cemb.dense.{i}.bias", (half,))
        table = linear(silu(table) if i else table, weight, bias)
    return {
        "time_embedding.linear_1.weight": first,
        "time_embedding.linear_1.bias": biases[0],
        "time_embedding.linear_2.weight": second,
        "time_embedding.linear_2.bias": biases[1],
        "class_embedding.weight": torch.cat([torch.zeros_like(table), table], dim=1),
    }
