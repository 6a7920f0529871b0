"""Real models of every kind of network at the smallest size, for the three classes of `tiny_models.split`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import DDPMScheduler, DiTTransformer2DModel, UNet2DConditionModel

from benchmarks.tiny_pipelines import autoencoder
from safemax.diffusion.codec import Codec
from safemax.diffusion.condition import Prompt, Prompts
from safemax.diffusion.model import Diffusion
from safemax.diffusion.networks.edm import EDMUNet
from tests.support import tiny_models

NAMES = ("a", "b", "c")
PROMPTS = (
    Prompt("an a", "a"), Prompt("a b", "b"), Prompt("a c", "c"),
    Prompt("some a", "a"), Prompt("the letter a", "a", held_out=True),
)  # fmt: skip


def dit(seed: int = 0) -> Diffusion:
    """Return a DiT of 8x8 grey images."""
    torch.manual_seed(seed)
    return Diffusion(_transformer(1, 8, 2), DDPMScheduler(1000, clip_sample=False), NAMES)


def latent_dit(seed: int = 0) -> Diffusion:
    """Return a DiT of 4x4 latents that predicts a variance too."""
    torch.manual_seed(seed)
    transformer = _transformer(4, 4, 1, out_channels=8)
    return Diffusion(transformer, DDPMScheduler(1000, clip_sample=False), NAMES, codec=Codec(autoencoder(8, width=8)))


def edm(seed: int = 0) -> Diffusion:
    """Return EDM's network for 8x8 grey images, with a null label."""
    torch.manual_seed(seed)
    denoiser = EDMUNet(
        sample_size=8, in_channels=1, out_channels=1, num_class_embeds=len(NAMES) + 1, model_channels=8,
        block_out_channels=(8, 8), layers_per_block=1, attention_sizes=(4,), dropout=0.0,
    )  # fmt: skip
    with torch.no_grad():
        for p in denoiser.parameters():
            p.add_(0.1 * torch.randn_like(p))  # an untrained one answers all labels alike
    return Diffusion(denoiser, DDPMScheduler(1000, clip_sample=False), NAMES)


def text(seed: int = 0, prediction: str = "v_prediction") -> Diffusion:
    """Return a UNet of 4x4 latents that is told its classes by prompts, a class by two, and predicts v."""
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=4, in_channels=4, out_channels=4, cross_attention_dim=8, block_out_channels=(8, 8),
        layers_per_block=1, norm_num_groups=4, attention_head_dim=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    condition = Prompts(PROMPTS, torch.randn(len(PROMPTS) + 1, 3, 8))
    schedule = DDPMScheduler(1000, clip_sample=False, prediction_type=prediction)
    return Diffusion(unet, schedule, NAMES, codec=Codec(autoencoder(8, width=8)), condition=condition)


KINDS: dict[str, Callable[..., Diffusion]] = {
    "unet": tiny_models.diffusion, "dit": dit, "latent_dit": latent_dit, "text": text,
    "edm": edm,
}  # fmt: skip


def _transformer(channels: int, side: int, patch: int, **further: int) -> DiTTransformer2DModel:
    return DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=4, num_layers=2, in_channels=channels, sample_size=side,
        patch_size=patch, num_embeds_ada_norm=len(NAMES), **further,
    )  # fmt: skip
