"""A checkpoint of another layout as a model: which layout it has is told by the names of its tensors."""

from __future__ import annotations

from pathlib import Path

from safemax.diffusion.codec import Codec
from safemax.diffusion.convert import dit, edm, unet
from safemax.diffusion.convert.tensors import read
from safemax.diffusion.model import Diffusion
from safemax.errors import InputError


def convert(
    path: Path,
    class_names: tuple[str, ...],
    *,
    size: int,
    open_pickle: bool = False,
    heads: int = 0,
    vae: Path | None = None,
) -> Diffusion:
    """Return a model with the outputs of the checkpoint's own network.

    Args:
        path: a safetensors file of the official UNet of SA and SalUn, of the official DiT, or of EDM.
        class_names: the K names, in label order.
        size: side of the images, which the UNet's tensors do not show.
        open_pickle: the file is a pickle of tensors alone.
        heads: of a DiT; 0 for those of the published widths.
        vae: folder of a DiT's AutoencoderKL.

    Raises:
        InputError: the file cannot be read or is none of these, by the name of the tensor that does not fit.
    """
    source = read(path, open_pickle=open_pickle)
    if dit.SIGN in source:
        return dit.from_tensors(source, class_names, heads=heads, codec=Codec.load(vae) if vae else None)
    if vae or heads:
        raise InputError(f"vae and heads are for a DiT, which {path} is not: {dit.SIGN} is missing")
    if edm.SIGN in source:
        return edm.from_tensors(source, class_names)
    return unet.from_tensors(source, class_names, size=size)
