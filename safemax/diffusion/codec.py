"""Images to latents and back by a frozen autoencoder, and a data set's latents, which are made once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from safemax.data.batches import to_float
from safemax.data.dataset import Split
from safemax.errors import InputError
from safemax.storage import cache

_PIXELS = 2**21  # of the images that are encoded or decoded at once: 8 of 512x512


class Codec:
    """A frozen AutoencoderKL, which is never trained or changed. It moves to where its work is, and off as training begins.

    Args:
        vae: the autoencoder.
    """

    def __init__(self, vae: AutoencoderKL) -> None:
        self.vae = vae.eval().requires_grad_(False)
        config = vae.config
        self.scale, self.shift = float(config.scaling_factor), float(config.shift_factor or 0.0)
        self.halvings = len(config.block_out_channels) - 1
        self.channels, self.latent_channels = int(config.out_channels), int(config.latent_channels)

    @classmethod
    def load(cls, folder: Path) -> Codec:
        """Read a vae/ folder; InputError where it is damaged or no AutoencoderKL."""
        try:
            vae = AutoencoderKL.from_pretrained(folder, use_safetensors=True, local_files_only=True)
        except Exception as error:  # diffusers and safetensors raise a dozen types for a damaged file
            raise InputError(f"{folder} is not a readable AutoencoderKL: {str(error).splitlines()[0]}") from error
        return cls(vae.float())

    def __deepcopy__(self, memo: object) -> Codec:
        """Return the codec itself, which copies of a model share."""
        return self

    @cached_property
    def digest(self) -> str:
        """Sha256 (hex) of weights and scaling."""
        facts = {"weights": cache.tensors_digest(self.vae.state_dict()), "scale": self.scale, "shift": self.shift}
        return cache.key(facts)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Return the latents of images (N, C, H, W) in [-1, 1], about normal: the posterior's mean, scaled."""
        return self._in_parts(
            lambda part: (self.vae.encode(part).latent_dist.mode() - self.shift) * self.scale,
            images,
            images[0, 0].numel(),
        )

    def decode(self, latents: Tensor) -> Tensor:
        """Return the images of latents, unclipped; a gradient passes."""
        return self._in_parts(
            lambda part: self.vae.decode(part / self.scale + self.shift, return_dict=False)[0],
            latents,
            latents[0, 0].numel() * 4**self.halvings,
        )

    def _in_parts(self, work: Callable[[Tensor], Tensor], tensor: Tensor, pixels: int) -> Tensor:
        self.vae.to(tensor.device)
        return torch.cat([work(part) for part in tensor.split(max(1, _PIXELS // pixels))])


def encoded(codec: Codec | None, split: Split, *, flip: bool) -> Split:
    """Return a split as a model sees it: its latents, with those of the mirrored images if they are to be drawn too.

    They are encoded once for a codec and kept in the cache as float16. Without a codec it is the split itself.

    Args:
        codec: of the model.
        split: images and labels.
        flip: whether training mirrors images.
    """
    if codec is None:
        return split
    facts = {"images": hashlib.sha256(split.images.numpy().tobytes()).hexdigest(), "shape": list(split.images.shape)}
    path = cache.folder("latents") / f"{cache.key({**facts, 'codec': codec.digest, 'flip': flip})}.safetensors"

    def encode() -> dict[str, Tensor]:
        images = {"latents": split.images} | ({"mirrored": split.images.flip(-1)} if flip else {})
        return {name: _half(codec, each) for name, each in images.items()}

    latents = cache.load_or_create(path, encode)
    codec.vae.to("cpu")  # training needs its memory
    return Split(latents["latents"], split.labels, latents.get("mirrored"))


def _half(codec: Codec, images: Tensor) -> Tensor:
    """Return latents as float16, encoded on a GPU if there is one; the images are read part by part."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.cat([codec.encode(to_float(part).to(device)).half().cpu() for part in images.split(256)])
