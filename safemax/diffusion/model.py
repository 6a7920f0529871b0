"""Diffusion: a class-conditional denoiser, its noise schedule and its null label, saved as a plain diffusers directory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DModel
from huggingface_hub import snapshot_download
from torch import Tensor, nn

from safemax.errors import InputError, unknown
from safemax.storage import cache

# Two levels with attention at half resolution: 465 k parameters for 8x8 grey images, 0.1 s a training step of 128 on one core.
SMALL: dict[str, Any] = {
    "block_out_channels": (32, 48),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 8,
    "attention_head_dim": None,
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
ARCHITECTURES = {"small": SMALL, "ddpm": DDPM}


class Diffusion(nn.Module):
    """A denoiser eps(x_t, t, c) over K classes and the null label K, with its DDPM schedule.

    Args:
        denoiser: predicts eps; num_class_embeds is K + 1 (the last is the null label) or K (no null label: unguided only).
        schedule: the forward process; prediction_type must be "epsilon".
        class_names: the K names, in label order.

    Raises:
        InputError: the denoiser cannot be unlearned by class, with the reason.
    """

    alpha_bar: Tensor

    def __init__(self, denoiser: UNet2DModel, schedule: DDPMScheduler, class_names: tuple[str, ...]) -> None:
        super().__init__()
        _validate(denoiser, schedule, tuple(class_names))
        self.denoiser = denoiser
        self.schedule = schedule
        self.class_names = tuple(class_names)
        self.names_are_stated = True
        config = denoiser.config
        self.has_null = config.num_class_embeds == self.num_classes + 1
        side = config.sample_size
        self.image_shape: tuple[int, int, int] = (config.in_channels, side, side)
        self.register_buffer("alpha_bar", schedule.alphas_cumprod.float().clone(), persistent=False)

    @classmethod
    def create(cls, architecture: str, image_shape: tuple[int, int, int], class_names: tuple[str, ...]) -> Diffusion:
        """Return an untrained model; the initial weights follow torch's global seed.

        Args:
            architecture: "small" (8x8 digits) or "ddpm" (32x32, the paper's).
            image_shape: (C, H, W) with H = W, divisible by what the architecture halves.
            class_names: one name a label; the null label is added.
        """
        if architecture not in ARCHITECTURES:
            raise unknown("architecture", architecture, ARCHITECTURES)
        channels, height, width = image_shape
        halvings = 2 ** (len(ARCHITECTURES[architecture]["block_out_channels"]) - 1)
        if height != width or height % halvings:
            raise InputError(
                f"images of {height}x{width} do not fit {architecture}: square sides divisible by {halvings} do"
            )
        denoiser = UNet2DModel(
            sample_size=height,
            in_channels=channels,
            out_channels=channels,
            num_class_embeds=len(class_names) + 1,
            **ARCHITECTURES[architecture],
        )
        return cls(denoiser, DDPMScheduler(1000, beta_start=1e-4, beta_end=0.02, clip_sample=False), class_names)

    @property
    def num_classes(self) -> int:
        """K, the null label not counted."""
        return len(self.class_names)

    @property
    def T(self) -> int:  # noqa: N802 - the field's letter
        """Number of diffusion steps; t runs from 0 to T - 1."""
        return len(self.alpha_bar)

    @property
    def device(self) -> torch.device:
        """Where the schedule, and with it the denoiser, lives."""
        return self.alpha_bar.device

    @contextmanager
    def without_dropout(self) -> Iterator[None]:
        """Predict as in evaluation for as long as the block lasts."""
        was_training = self.training
        self.eval()
        try:
            yield
        finally:
            self.train(was_training)

    def forward(self, x_t: Tensor, t: Tensor, c: Tensor) -> Tensor:
        """Predict the noise.

        Args:
            x_t: noised images, (N, C, H, W) float32.
            t: steps, (N,) int64 in [0, T).
            c: labels, (N,) int64 in [0, K], K being the null label.

        Returns:
            eps, (N, C, H, W) float32.
        """
        return self.denoiser(x_t, t, class_labels=c, return_dict=False)[0].float()

    def null(self, c: Tensor) -> Tensor:
        """Return the null label K in the shape of c; raise InputError where the model has none."""
        if not self.has_null:
            raise InputError(f"the model has no null label: its {self.num_classes} label embeddings are all classes")
        return torch.full_like(c, self.num_classes)

    def drop_labels(self, c: Tensor, share: float) -> Tensor:
        """Replace each label by the null label with probability `share`, in [0, 1]."""
        if share == 0:
            return c
        return torch.where(torch.rand(c.shape, device=c.device) < share, self.null(c), c)

    def times(self, n: int) -> Tensor:
        """Draw n antithetic steps, (n,) int64: half uniform in [0, T), half their mirror images T - 1 - t.

        The reference code of the DDIM, SA and SalUn family draws them so, in pretraining too.
        """
        t = torch.randint(0, self.T, (n // 2 + 1,), device=self.device)
        return torch.cat([t, self.T - 1 - t])[:n]

    def diffuse(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """Return x_t = sqrt(alpha_bar_t) x0 + sqrt(1 - alpha_bar_t) eps (equation 1 of the SAFEMax paper)."""
        alpha_bar = self.alpha_bar[t].view(-1, 1, 1, 1)
        return alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * eps

    def denoising_loss(self, x0: Tensor, c: Tensor, *, null_drop: float = 0.0) -> Tensor:
        """Return the mean over pixels and batch of ||eps - eps(x_t, t, c)||^2 (equation 2), t antithetic, labels dropped."""
        eps = torch.randn_like(x0)
        t = self.times(len(x0))
        return (self(self.diffuse(x0, t, eps), t, self.drop_labels(c, null_drop)) - eps).square().mean()

    def digest(self) -> str:
        """Return the sha256 of the weights, their names and shapes, as hex; equal bytes give equal digests."""
        return cache.tensors_digest(self.denoiser.state_dict())

    def identity(self) -> str:
        """Return a digest of all that decides what the model draws from given noise: weights and schedule."""
        return cache.key({"weights": self.digest(), "schedule": self.alpha_bar.tolist()})

    def save(self, folder: Path | str) -> None:
        """Write a diffusers directory: unet/ (safetensors, JSON), scheduler/ and model_index.json with the class names."""
        folder = Path(folder)
        self.denoiser.save_pretrained(folder / "unet", safe_serialization=True)
        self.schedule.save_pretrained(folder / "scheduler")
        index = {
            "_class_name": "SafemaxPipeline",
            "unet": ["diffusers", "UNet2DModel"],
            "scheduler": ["diffusers", "DDPMScheduler"],
            "class_names": list(self.class_names),
        }
        (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")

    @classmethod
    def load(cls, source: Path | str) -> Diffusion:
        """Read a diffusers directory, or fetch one from the Hugging Face hub; only safetensors and JSON are ever opened.

        A directory without class names gets "0", "1", ...; its last label is then taken to be the null label.

        Raises:
            InputError: nothing is at source, a file is damaged, or the model cannot be unlearned, with the reason.
        """
        folder = _locate(str(source))
        index = _read_json(folder / "model_index.json") if (folder / "model_index.json").exists() else {}
        unet = folder / "unet" if (folder / "unet").is_dir() else folder
        config = _read_json(unet / "config.json")
        if config.get("_class_name") != "UNet2DModel":
            raise InputError(
                f"{source} holds a {config.get('_class_name')}; only class-conditional UNet2DModel can be unlearned"
            )
        if not config.get("num_class_embeds"):
            raise InputError(
                f"{source} cannot be unlearned by class: its denoiser has no class embedding (num_class_embeds)"
            )
        _validate_size(str(source), folder, config)
        try:
            denoiser = UNet2DModel.from_pretrained(unet, use_safetensors=True, local_files_only=True)
            schedule = DDPMScheduler.from_pretrained(_schedule_folder(folder), local_files_only=True)
        except Exception as error:  # diffusers and safetensors raise a dozen types for a damaged file
            raise InputError(f"{source} is not a readable model: {str(error).splitlines()[0]}") from error
        _validate_weights(str(source), denoiser)
        names = index.get("class_names") or [str(k) for k in range(config["num_class_embeds"] - 1)]
        diffusion = cls(denoiser, schedule, tuple(map(str, names)))
        diffusion.names_are_stated = bool(index.get("class_names"))
        return diffusion


def _validate_size(source: str, folder: Path, config: dict[str, Any]) -> None:
    """Raise InputError for a network or schedule that would take hours or all memory to build, such as one of 10^7 layers."""
    allowed = {
        "sample_size": 1024,
        "in_channels": 64,
        "out_channels": 64,
        "num_class_embeds": 100_000,
        "layers_per_block": 16,
    }
    values = [(name, config[name], most) for name, most in allowed.items() if config.get(name) is not None]
    channels = config.get("block_out_channels", [224])
    values.append(("number of block_out_channels", len(channels) if isinstance(channels, list) else None, 12))
    values += [("block_out_channels", each, 4096) for each in channels or []] if isinstance(channels, list) else []
    if (path := _schedule_folder(folder) / "scheduler_config.json").exists():
        values.append(("num_train_timesteps", _read_json(path).get("num_train_timesteps", 1000), 100_000))
    for name, value, most in values:
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise InputError(
                f"{source} cannot be built: {name} = {str(value)[:60]} is not allowed; it is from 1 to {most}"
            )


def _validate_weights(source: str, denoiser: UNet2DModel) -> None:
    for name, weight in denoiser.named_parameters():
        if weight.is_meta:
            raise InputError(f"{source} is incomplete: its file has no weights {name}")
        if not weight.isfinite().all():
            raise InputError(f"{source} cannot be used: its weights {name} are not finite")


def _validate(denoiser: UNet2DModel, schedule: DDPMScheduler, class_names: tuple[str, ...]) -> None:
    labels, num_classes = denoiser.config.num_class_embeds, len(class_names)
    duplicates = sorted({name for name in class_names if class_names.count(name) > 1})
    if duplicates:
        raise InputError(
            f"duplicate class names {', '.join(map(repr, duplicates))}; each label needs a name of its own"
        )
    if not labels:
        raise InputError("the denoiser has no class embedding (num_class_embeds), so no class of it can be unlearned")
    if labels not in (num_classes, num_classes + 1):
        raise InputError(
            f"{num_classes} class names do not fit {labels} label embeddings: as many, or one more for the null label, do"
        )
    if schedule.config.prediction_type != "epsilon":
        raise InputError(f"prediction_type {schedule.config.prediction_type!r} is not supported; supported: epsilon")
    if denoiser.config.out_channels != denoiser.config.in_channels:
        raise InputError("a denoiser that also predicts its variance (out_channels != in_channels) is not supported")
    if not isinstance(denoiser.config.sample_size, int):
        raise InputError(f"sample_size {denoiser.config.sample_size} is not supported; a single side length is")


def _locate(source: str) -> Path:
    folder = Path(source)
    if folder.is_dir():
        return folder
    if folder.exists() or source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise InputError(
            f"model = {source} is not a folder; give a diffusers directory, a hub id (owner/name) or a models:/ address"
        )
    try:
        return Path(snapshot_download(source, allow_patterns=["*.json", "*.safetensors"]))
    except Exception as error:  # the hub client raises by transport: network, missing repository, gated, offline
        raise InputError(
            f"model = {source} is neither a folder nor a model that the hub gives: {str(error).splitlines()[0]}"
        ) from error


def _schedule_folder(folder: Path) -> Path:
    return folder / "scheduler" if (folder / "scheduler").is_dir() else folder


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is missing or is not JSON: this is not a diffusers directory") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a JSON object: this is not a diffusers directory")
    return content
