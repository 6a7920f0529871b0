"""Pipelines of diffusers at the smallest size that has every part, with random weights: DiT and Stable Diffusion."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

TOKENS = 16  # of a prompt, its begin and end counted
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False,
            "set_alpha_to_one": False, "steps_offset": 1}  # fmt: skip


def autoencoder(side: int, channels: int = 1, latent_channels: int = 4, width: int = 16) -> AutoencoderKL:
    """Return an untrained autoencoder that halves the side of an image once."""
    return AutoencoderKL(
        in_channels=channels, out_channels=channels, latent_channels=latent_channels, sample_size=side,
        block_out_channels=(width, width), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=8, scaling_factor=0.5,
    )  # fmt: skip


def write_dit(
    folder: Path,
    vae: AutoencoderKL,
    names: Iterable[str],
    *,
    layers: int = 2,
    heads: int = 2,
    learned_sigma: bool = True,
) -> Path:
    """Write what DiTPipeline.from_pretrained opens.

    Args:
        folder: to write to.
        vae: of its latents.
        names: of the classes, each with its synonyms separated by commas.
        layers: transformer blocks.
        heads: of 16 channels each.
        learned_sigma: predict a variance too, as DiT does.
    """
    labels = dict(enumerate(names))
    channels = vae.config.latent_channels
    transformer = DiTTransformer2DModel(
        num_attention_heads=heads, attention_head_dim=16, num_layers=layers, in_channels=channels, patch_size=1,
        out_channels=2 * channels if learned_sigma else channels, sample_size=vae.config.sample_size // 2,
        num_embeds_ada_norm=len(labels),
    )  # fmt: skip
    scheduler = DDIMScheduler(beta_schedule="linear", clip_sample=False)
    DiTPipeline(transformer, vae, scheduler).save_pretrained(folder)
    index = folder / "model_index.json"  # the pipeline reads id2label there, but does not write it
    index.write_text(json.dumps(json.loads(index.read_text()) | {"id2label": labels}, indent=2))
    return folder


def write_stable_diffusion(
    folder: Path, vae: AutoencoderKL, words: Iterable[str], *, width: int = 32, prediction: str = "epsilon", **unet: Any
) -> Path:
    """Write what StableDiffusionPipeline.from_pretrained opens.

    Args:
        folder: to write to.
        vae: of its latents.
        words: that the tokenizer knows as one token each.
        width: of the text encoder and of the UNet's first level.
        prediction: epsilon or v_prediction.
        unet: further settings of the UNet.
    """
    shape: dict[str, Any] = {
        "block_out_channels": (width, width), "layers_per_block": 1, "norm_num_groups": 8, "attention_head_dim": 2,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }  # fmt: skip
    channels = vae.config.latent_channels
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=_text_encoder(tokenizer := _tokenizer(words), width),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(
            sample_size=vae.config.sample_size // 2, in_channels=channels, out_channels=channels,
            cross_attention_dim=width, **shape | unet,
        ),
        scheduler=DDIMScheduler(**SCHEDULE, prediction_type=prediction),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def _tokenizer(words: Iterable[str]) -> CLIPTokenizer:
    """Return CLIP's tokenizer with a vocabulary of its own: letters, digits, and these words."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    merges: list[tuple[str, str]] = []
    for word in words:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        for i in range(1, len(parts)):
            merges.append(("".join(parts[:i]), parts[i]))
            tokens.append("".join(parts[: i + 1]))
    vocabulary = {token: k for k, token in enumerate(dict.fromkeys([*tokens, "<|startoftext|>", "<|endoftext|>"]))}
    return CLIPTokenizer(vocabulary, list(dict.fromkeys(merges)), model_max_length=TOKENS)


def _text_encoder(tokenizer: CLIPTokenizer, width: int) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, projection_dim=width,
            num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=TOKENS,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    ).eval()  # fmt: skip
