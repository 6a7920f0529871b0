"""NVlabs' EDM network for labels (Karras et al., arXiv:2206.00364), DDPM++ or NCSN++, as a denoiser with the same outputs."""

from __future__ import annotations

import math

import torch

from safemax.diffusion import schedules
from safemax.diffusion.convert.tensors import Source, Tensors
from safemax.diffusion.model import Diffusion
from safemax.diffusion.networks.edm import EDMUNet
from safemax.errors import InputError

SIGN = "model.map_layer0.weight"  # a tensor that only such a checkpoint has
RESIDUAL = {
    "norm1": "norm0", "conv1": "conv0", "time_emb_proj": "affine", "norm2": "norm1", "conv2": "conv1",
    "conv_shortcut": "skip",
}  # fmt: skip


def from_tensors(source: Source, class_names: tuple[str, ...]) -> Diffusion:
    """Return a model of T = 1000 linear steps with the outputs of EDM's preconditioned network, turned into eps.

    EDM's inputs for augmented images have no bias and are 0 for images as they are, so they are left out. The queries, keys and
    values of its attention are one layer's channels in turn, and the label is a one-hot vector times sqrt(K).

    Args:
        source: the state dict of EDMPrecond; sizes, depths and variant are read off names and shapes.
        class_names: the K names, in label order; EDM has no null label.

    Raises:
        InputError: a tensor is missing, unexpected or of a wrong shape, by name.
    """
    with source.taken_for("EDM's network"):
        denoiser = EDMUNet(**_config(source, len(class_names)))
        denoiser.load_state_dict(_translated(source, denoiser))
    return Diffusion(denoiser, schedules.named("linear"), class_names).eval()


def _config(source: Source, num_classes: int) -> dict[str, object]:
    if "model.map_label.weight" not in source:
        raise InputError("model.map_label.weight is missing: it is not told a class, as edm-cifar10-32x32-cond-vp is")
    sides = _sides(source)
    first = f"model.enc.{sides[0]}x{sides[0]}"
    width, channels = source.find(f"{first}_conv.weight", 4).shape[:2]
    blocks = [f"model.enc.{side}x{side}_block0" for side in sides]
    return {
        "sample_size": sides[0],
        "in_channels": channels,
        "out_channels": channels,
        "num_class_embeds": num_classes,
        "variant": "ncsnpp" if "model.map_noise.freqs" in source else "ddpmpp",
        "model_channels": width,
        "block_out_channels": tuple(source.find(f"{block}.conv0.weight", 4).shape[0] for block in blocks),
        "layers_per_block": source.count(rf"{first}_block(\d+)\.".replace(".enc", r"\.enc")),
        "attention_sizes": tuple(
            side for side, block in zip(sides, blocks, strict=True) if f"{block}.qkv.weight" in source
        ),
    }


def _sides(source: Source) -> list[int]:
    """Return the sides of the levels, from the largest, each half of the one before."""
    names = (name.split(".") for name in source.tensors)
    parts = {part[2].partition("x")[0] for part in names if part[:2] == ["model", "enc"] and len(part) > 2}
    sides = sorted((int(part) for part in parts if part.isdigit()), reverse=True)
    if not sides or any(2 * small != large for large, small in zip(sides, sides[1:], strict=False)):
        raise InputError("model.enc has no levels whose sides halve, such as 32x32 and 16x16")
    return sides


def _translated(source: Source, denoiser: EDMUNet) -> Tensors:
    """Return the state dict of the denoiser."""
    tensors = _embeddings(source, denoiser)
    for name, value in denoiser.state_dict().items():
        if name in tensors:
            continue
        if ".attentions.0.to_" in name and "to_out" not in name:
            tensors[name] = _part_of_attention(source, name, value)
            continue
        theirs = _theirs(name, denoiser.config.sample_size)
        is_linear = ".to_out.0.weight" in name
        tensors[name] = source(theirs, (*value.shape, 1, 1) if is_linear else value.shape).view(value.shape)
    for name in source.tensors:
        if name.endswith(".resample_filter"):
            source(name, (1, 1, 4, 4) if denoiser.config.variant == "ncsnpp" else (1, 1, 2, 2))
    source.ignore("model.map_augment.weight")
    source.reject_unread()
    return tensors


def _embeddings(source: Source, denoiser: EDMUNet) -> Tensors:
    rows, noise = denoiser.class_embedding.weight.shape
    weight, bias = source("model.map_label.weight", (noise, rows)), source("model.map_label.bias", (noise,))
    tensors = {"class_embedding.weight": weight.T * math.sqrt(rows) + bias, "frequencies": denoiser.frequencies}
    if denoiser.config.variant == "ncsnpp":
        tensors["frequencies"] = 2 * math.pi * source("model.map_noise.freqs", (noise // 2,))
    for ours, theirs in {0: "map_layer0", 2: "map_layer1"}.items():
        layer = denoiser.time_embedding[ours]
        for kind in ("weight", "bias"):
            shape = getattr(layer, kind).shape
            tensors[f"time_embedding.{ours}.{kind}"] = source(f"model.{theirs}.{kind}", shape)
    return tensors


def _part_of_attention(source: Source, name: str, like: torch.Tensor) -> torch.Tensor:
    """Return queries, keys or values: every third channel of the layer that makes all three."""
    block, _, rest = name.partition(".attentions.0.")
    layer, kind = rest.split(".")
    at = {"to_q": 0, "to_k": 1, "to_v": 2}[layer]
    shape = (3 * like.shape[0], *like.shape[1:], *((1, 1) if kind == "weight" else ()))
    return source(f"{_side_of(block)}.qkv.{kind}", shape)[at::3].reshape(like.shape)


def _theirs(name: str, side: int) -> str:
    module, kind = name.rsplit(".", 1)
    outer = {"conv_in": "enc", "norm_out": "dec", "conv_out": "dec"}
    if module in outer:
        last = {"conv_in": "conv", "norm_out": "aux_norm", "conv_out": "aux_conv"}[module]
        return f"model.{outer[module]}.{side}x{side}_{last}.{kind}"
    if module.startswith("residual."):
        return f"model.enc.{module.split('.')[1].removesuffix('down')}aux_residual.{kind}"
    if ".resnet." in module:
        block, _, layer = module.partition(".resnet.")
        return f"{_side_of(block)}.{RESIDUAL[layer]}.{kind}"
    block, _, layer = module.partition(".attentions.0.")
    return f"{_side_of(block)}.{ {'group_norm': 'norm2', 'to_out.0': 'proj'}[layer] }.{kind}"


def _side_of(block: str) -> str:
    return "model." + block.replace("encoder.", "enc.").replace("decoder.", "dec.")
