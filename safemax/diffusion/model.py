"""Diffusion: a class-conditional denoiser, its noise schedule and its null label, saved as a plain diffusers directory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import DDPMScheduler, UNet2DModel
from torch import Tensor, nn
from torch.nn.functional import pad

from safemax.diffusion import folder, schedules
from safemax.diffusion.architectures import ARCHITECTURES, Cost, fitting, halvings, name_of
from safemax.errors import InputError, unknown
from safemax.storage import cache


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
        missing = -side % halvings(denoiser)  # pixels up to a side that can be halved
        self._padding = missing // 2, missing - missing // 2
        self.register_buffer("alpha_bar", schedule.alphas_cumprod.float().clone(), persistent=False)

    @classmethod
    def create(cls, architecture: str, image_shape: tuple[int, int, int], class_names: tuple[str, ...]) -> Diffusion:
        """Return an untrained model; the initial weights follow torch's global seed.

        Args:
            architecture: "small", "medium", "deep", "ddpm" (the paper's), or "auto", which fits the image size.
            image_shape: (C, H, W) with H = W; a side that the network cannot halve is padded inside.
            class_names: one name a label; the null label is added.
        """
        channels, height, width = image_shape
        if height != width:
            raise InputError(f"images of {height}x{width} are not square; size = {min(height, width)} crops them")
        if architecture == "auto":
            architecture = fitting(height)
        if architecture not in ARCHITECTURES:
            raise unknown("architecture", architecture, ["auto", *ARCHITECTURES])
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

    @property
    def architecture(self) -> str:
        """Name of the network's architecture; `custom` for one that `create` does not make."""
        return name_of(self.denoiser)

    @property
    def cost(self) -> Cost:
        """Parameters, and operations of one denoising of one image."""
        return Cost.of(self.denoiser, self.image_shape[-1] + sum(self._padding))

    def name_classes(self, class_names: tuple[str, ...]) -> None:
        """Name the classes of a model that states none; as many names as label embeddings mean that none is the null label.

        Raises:
            InputError: the names are duplicate, or do not fit the number of label embeddings.
        """
        _validate(self.denoiser, self.schedule, class_names)
        self.class_names, self.names_are_stated = class_names, True
        self.has_null = self.denoiser.config.num_class_embeds == self.num_classes + 1

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
        before, after = self._padding
        if before or after:
            x_t = pad(x_t, (before, after, before, after))
        eps = self.denoiser(x_t, t, class_labels=c, return_dict=False)[0].float()
        side = self.image_shape[-1]
        return eps[..., before : before + side, before : before + side] if before or after else eps

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

    def denoising_loss(self, x0: Tensor, c: Tensor, *, null_drop: float = 0.0, min_snr_gamma: float = 0.0) -> Tensor:
        """Return the mean over pixels and batch of ||eps - eps(x_t, t, c)||^2 (equation 2), t antithetic, labels dropped.

        Args:
            x0: images, (N, C, H, W) in [-1, 1].
            c: labels, (N,) int64.
            null_drop: share of labels replaced by the null label.
            min_snr_gamma: gamma of `min_snr_weights`; 0 weighs all steps t alike.
        """
        eps = torch.randn_like(x0)
        t = self.times(len(x0))
        square = (self(self.diffuse(x0, t, eps), t, self.drop_labels(c, null_drop)) - eps).square()
        if min_snr_gamma:
            square = square * self.min_snr_weights(t, min_snr_gamma).view(-1, 1, 1, 1)
        return square.mean()

    def min_snr_weights(self, t: Tensor, gamma: float) -> Tensor:
        """Return min(SNR, gamma) / SNR for each step t, SNR = alpha_bar / (1 - alpha_bar), (N,) in (0, 1].

        Steps with little noise, which weigh most in the loss of x0, get less (Hang et al., arXiv:2303.09556, for eps).
        """
        alpha_bar = self.alpha_bar[t]
        return (gamma * (1 - alpha_bar) / alpha_bar).clamp_max(1)

    def digest(self) -> str:
        """Return the sha256 of the weights, their names and shapes, as hex; equal bytes give equal digests."""
        return cache.tensors_digest(self.denoiser.state_dict())

    def identity(self) -> str:
        """Return a digest of all that decides what the model draws from given noise: weights and schedule."""
        return cache.key({"weights": self.digest(), "schedule": self.alpha_bar.tolist()})

    def save(self, path: Path | str) -> None:
        """Write a diffusers directory: unet/ (safetensors, JSON), scheduler/ and model_index.json with the class names."""
        folder.write(Path(path), self.denoiser, self.schedule, self.class_names)

    @classmethod
    def load(cls, source: Path | str, *, schedule: str = "auto") -> Diffusion:
        """Read a diffusers directory, or fetch one from the Hugging Face hub; only safetensors and JSON are ever opened.

        A directory without class names gets "0", "1", ...; its last label is then taken to be the null label, until
        `name_classes` says otherwise.

        Args:
            source: the folder or hub id.
            schedule: for a model without a scheduler, linear, scaled_linear, cosine or sigmoid.

        Raises:
            InputError: nothing is at source, a file is damaged, or the model cannot be unlearned, with the reason.
        """
        parts = folder.read(str(source), schedule)
        labels = parts.denoiser.config.num_class_embeds
        names = parts.class_names or tuple(str(k) for k in range(labels - 1))
        diffusion = cls(parts.denoiser, parts.schedule, names)
        diffusion.names_are_stated = parts.class_names is not None
        return diffusion


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
    schedules.validate(schedule)
    if denoiser.config.out_channels != denoiser.config.in_channels:
        raise InputError("a denoiser that also predicts its variance (out_channels != in_channels) is not supported")
    if not isinstance(denoiser.config.sample_size, int):
        raise InputError(f"sample_size {denoiser.config.sample_size} is not supported; a single side length is")
