"""The official DiT (Peebles and Xie, arXiv:2212.09748) as a denoiser with the same outputs, by the names of its tensors."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from safemax.diffusion import schedules
from safemax.diffusion.codec import Codec
from safemax.diffusion.convert.tensors import Source, Tensors
from safemax.diffusion.model import Diffusion
from safemax.diffusion.networks.dit import OfficialDiT
from safemax.errors import InputError

SIGN = "x_embedder.proj.weight"  # a tensor that only such a checkpoint has
HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}  # of the published widths: S, B, L, XL
_NORM = 1e-6  # eps of every layer normalisation
BLOCK = {
    "norm1.linear": "adaLN_modulation.1", "norm1.emb.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "norm1.emb.timestep_embedder.linear_2": "t_embedder.mlp.2", "attn1.to_out.0": "attn.proj",
    "ff.net.0.proj": "mlp.fc1", "ff.net.2": "mlp.fc2",
}  # fmt: skip
OUTSIDE = {
    "pos_embed.proj": "x_embedder.proj", "proj_out_1": "final_layer.adaLN_modulation.1",
    "proj_out_2": "final_layer.linear",
}  # fmt: skip


def from_tensors(
    source: Source, class_names: tuple[str, ...], *, heads: int = 0, codec: Codec | None = None
) -> Diffusion:
    """Return a model of T = 1000 linear steps with the outputs of the official DiT; the last label is its null label.

    The tables of steps and labels are one each in the official network and one a block in diffusers', so they are copied. The
    predicted variance, if there is one, is kept and left alone.

    Args:
        source: the official state dict; sizes and depth are read off its shapes.
        class_names: the K names, in label order.
        heads: of attention, which the shapes do not show; 0 for those of the published widths.
        codec: of the latents; None for a DiT of images.

    Raises:
        InputError: a tensor is missing, unexpected or of a wrong shape, by name, or the positions are not the usual ones.
    """
    with source.taken_for("the official DiT"):
        denoiser = OfficialDiT(**_config(source, len(class_names), heads))
        _validate_positions(source, denoiser)
        translated = {name: source(theirs, like) for name, theirs, like in _plain(denoiser)} | _attention(
            source, denoiser
        )
        source.reject_unread()
        denoiser.load_state_dict(translated)
    if codec is not None and codec.latent_channels != denoiser.config.in_channels:
        raise InputError(
            f"the vae has latents of {codec.latent_channels} channels, {source.path} takes {denoiser.config.in_channels}"
        )
    return Diffusion(denoiser, schedules.named("linear"), class_names, codec=codec).eval()


def _config(source: Source, num_classes: int, heads: int) -> dict[str, object]:
    width, channels, patch, _ = source.find(SIGN, 4).shape
    heads = heads or HEADS.get(width, 0)
    if not heads or width % heads:
        raise InputError(
            f"its width is {width}, and heads = {heads} does not divide it; published widths are "
            + ", ".join(f"{each} ({count} heads)" for each, count in HEADS.items())
        )
    labels = len(source.find("y_embedder.embedding_table.weight", 2))
    if labels != num_classes + 1:
        raise InputError(
            f"it has {labels} labels, the null label among them; {num_classes} classes need {num_classes + 1}"
        )
    return {
        "num_attention_heads": heads,
        "attention_head_dim": width // heads,
        "in_channels": channels,
        "out_channels": len(source.find("final_layer.linear.weight", 2)) // patch**2,
        "num_layers": source.count(r"blocks\.(\d+)\."),
        "sample_size": math.isqrt(source.find("pos_embed", 3).shape[1]) * patch,
        "patch_size": patch,
        "num_embeds_ada_norm": num_classes,
        "norm_eps": _NORM,
    }


def _validate_positions(source: Source, denoiser: OfficialDiT) -> None:
    ours = denoiser.pos_embed.pos_embed
    if not torch.allclose(source("pos_embed", ours.shape), ours, rtol=0, atol=1e-5):
        raise InputError("pos_embed holds other positions than the sines and cosines of the official DiT")


def _plain(denoiser: OfficialDiT) -> Iterator[tuple[str, str, torch.Size]]:
    """Yield each tensor that is copied as it is: our name, the official one and the shape."""
    for name, value in denoiser.state_dict().items():
        module, kind = name.rsplit(".", 1)
        if ".to_q" in name or ".to_k" in name or ".to_v" in name:
            continue
        if module in OUTSIDE:
            yield name, f"{OUTSIDE[module]}.{kind}", value.shape
            continue
        _, number, rest = module.split(".", 2)
        if rest == "norm1.emb.class_embedder.embedding_table":
            yield name, f"y_embedder.embedding_table.{kind}", value.shape
        else:
            theirs = BLOCK[rest]
            yield name, f"{theirs if theirs.startswith('t_') else f'blocks.{number}.{theirs}'}.{kind}", value.shape


def _attention(source: Source, denoiser: OfficialDiT) -> Tensors:
    """Return queries, keys and values, which are one layer in the official network."""
    width, tensors = denoiser.inner_dim, {}
    for number in range(denoiser.config.num_layers):
        for kind, shape in {"weight": (3 * width, width), "bias": (3 * width,)}.items():
            parts = source(f"blocks.{number}.attn.qkv.{kind}", shape).chunk(3)
            for name, part in zip("qkv", parts, strict=True):
                tensors[f"transformer_blocks.{number}.attn1.to_{name}.{kind}"] = part
    return tensors
