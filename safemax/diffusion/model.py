"""Diffusion: a denoiser told its classes by labels or prompts, its noise schedule and its null label, of images or latents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Generator, Tensor, nn
from torch.nn import Parameter
from torch.nn.functional import pad

from safemax.data.batches import to_uint8
from safemax.diffusion import folder, home, schedules
from safemax.diffusion.codec import Codec
from safemax.diffusion.condition import Labels, Prompt, Prompts
from safemax.diffusion.home import Home
from safemax.diffusion.networks import architectures, kinds
from safemax.diffusion.networks.architectures import Cost
from safemax.diffusion.row_noise import ALONE, RowNoise
from safemax.errors import InputError
from safemax.storage import cache


class Diffusion(nn.Module):
    """A denoiser eps(x_t, t, c) over K classes and the null label K, with its DDPM schedule.

    images --encode--> x0 --diffuse--> x_t --denoiser(x_t, t, condition(c))--> eps; samples --decode--> images. x0 are latents
    where there is a codec, else the images. A method sees x0, x_t, t, c and eps alone, whatever the kind of network.

    Args:
        denoiser: a network of `kinds.KINDS`; predicts eps or v, and perhaps a variance, which is left alone.
        schedule: the forward process; prediction_type is "epsilon" or "v_prediction".
        class_names: the K names, in label order.
        codec: makes latents of images; None for a model of images.
        condition: tells the denoiser its classes; None for its own labels.
        home: where it was read from.

    Raises:
        InputError: the denoiser cannot be unlearned by class, with the reason.

    Attributes:
        image_shape: (C, H, W) of the images.
        x0_shape: (C, H, W) of what is diffused, the images or their latents.
        has_null: whether label K is the null label, else the model is unguided.
    """

    alpha_bar: Tensor
    condition: Labels | Prompts

    def __init__(
        self,
        denoiser: Any,
        schedule: DDPMScheduler,
        class_names: tuple[str, ...],
        *,
        codec: Codec | None = None,
        condition: Labels | Prompts | None = None,
        home: Home | None = None,
    ) -> None:
        super().__init__()
        self.kind, self.condition = kinds.of(denoiser), condition or Labels()
        kinds.validate(denoiser, tuple(class_names), self.condition)
        schedules.validate(schedule)
        self.kind.prepare(denoiser, schedule)
        self.denoiser, self.schedule, self.codec, self.home = denoiser, schedule, codec, home
        self.class_names, self.names_are_stated = tuple(class_names), True
        self.moving: tuple[str, ...] = ("",)  # parts of the names of the weights that may move
        self._listed: list[tuple[str, Parameter]] | None = None
        self.adapters: dict[str, tuple[Tensor, Tensor]] = {}  # that the last training added to weights, by their names
        self.row_noise = ALONE
        self.has_null = kinds.has_null(self.denoiser, self.condition, self.num_classes)
        channels, side = denoiser.config.in_channels, denoiser.config.sample_size
        self.x0_shape: tuple[int, int, int] = (channels, side, side)
        self.image_shape = self.x0_shape
        if codec is not None:
            self.image_shape = (codec.channels, side * 2**codec.halvings, side * 2**codec.halvings)
        missing = -side % self.kind.divisor(denoiser.config)  # pixels up to a side that can be halved
        self._padding = missing // 2, missing - missing // 2
        self.register_buffer("alpha_bar", schedule.alphas_cumprod.float().clone(), persistent=False)

    @classmethod
    def create(cls, architecture: str, image_shape: tuple[int, int, int], class_names: tuple[str, ...]) -> Diffusion:
        """Return an untrained model; the initial weights follow torch's global seed.

        Args:
            architecture: "small", "medium", "deep", "ddpm" (the paper's), "dit", or "auto", which fits the image size.
            image_shape: (C, H, W) with H = W; a side that the network cannot halve is padded inside.
            class_names: one name a label; the null label is added.
        """
        channels, height, width = image_shape
        if height != width:
            raise InputError(f"images of {height}x{width} are not square; size = {min(height, width)} crops them")
        denoiser = architectures.build(architecture, channels, height, len(class_names))
        return cls(denoiser, schedules.named("linear"), class_names)

    def untrained(self) -> Diffusion:
        """Return a model of the same network with new initial weights, which follow torch's global seed."""
        rest: dict[str, Any] = {"codec": self.codec, "condition": self.condition, "home": self.home}
        return Diffusion(type(self.denoiser).from_config(self.denoiser.config), self.schedule, self.class_names, **rest)

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
        """Name of the network that `create` would make; `custom` for another."""
        return architectures.name_of(self.denoiser)

    @property
    def cost(self) -> Cost:
        """Parameters, and operations of one denoising of one image."""
        inputs = self.condition(torch.zeros(1, dtype=torch.int64, device=self.device))
        return Cost.of(self.denoiser, self.x0_shape[-1] + sum(self._padding), inputs)

    def name_classes(self, class_names: tuple[str, ...]) -> None:
        """Name the classes of a model that states none; as many names as label embeddings mean that none is the null label.

        Raises:
            InputError: the names are duplicate, or do not fit the number of label embeddings.
        """
        kinds.validate(self.denoiser, class_names, self.condition)
        self.class_names, self.names_are_stated = class_names, True
        self.has_null = kinds.has_null(self.denoiser, self.condition, self.num_classes)

    def for_classes(self, class_names: tuple[str, ...]) -> Diffusion:
        """Return this model, of the same weights, as one of some of its classes, by their names or synonyms.

        The network keeps its other labels; nothing is trained or measured of them.

        Raises:
            InputError: a name is not one of its classes.
        """
        if self.condition.facts():
            raise InputError(f"the model's classes are {', '.join(self.class_names)}; it cannot be used for others")
        rows = home.labels_of(class_names, self.home, self.class_names)
        null = [self.kind.labels(self.denoiser.config) - 1] if self.has_null else []
        rest: dict[str, Any] = {"codec": self.codec, "condition": Labels([*rows, *null]), "home": self.home}
        return Diffusion(self.denoiser, self.schedule, class_names, **rest)

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
            x_t: noised images or latents, (N, C, H, W) float32.
            t: steps, (N,) int64 in [0, T).
            c: labels, (N,) int64 in [0, K], K being the null label; beyond K, rows of further prompts.

        Returns:
            eps, (N, C, H, W) float32.
        """
        before, after = self._padding
        padded = pad(x_t, (before, after, before, after)) if before or after else x_t
        predicted = self.denoiser(padded, t, **self.condition(c), return_dict=False)[0].float()
        channels, side = x_t.shape[1], x_t.shape[-1]
        if before or after:
            predicted = predicted[..., before : before + side, before : before + side]
        if predicted.shape[1] > channels:  # the rest is a variance
            predicted = predicted[:, :channels]
        if self.schedule.config.prediction_type == "epsilon":
            return predicted
        alpha_bar = self.alpha_bar[t].view(-1, 1, 1, 1)
        return alpha_bar.sqrt() * predicted + (1 - alpha_bar).sqrt() * x_t

    def encode(self, images: Tensor) -> Tensor:
        """Return x0 of images (N, C, H, W) in [-1, 1]: their latents, or the images themselves."""
        return images if self.codec is None else self.codec.encode(images)

    def decode(self, x0: Tensor) -> Tensor:
        """Return the images of x0, unclipped where they are decoded; a gradient passes."""
        return x0 if self.codec is None else self.codec.decode(x0)

    def bounded(self, x0: Tensor) -> Tensor:
        """Return x0 within its range: images within [-1, 1], latents, which have none, as they are."""
        return x0.clamp(-1, 1) if self.codec is None else x0

    def stored(self, x0: Tensor) -> Tensor:
        """Return x0 as it is kept: images as uint8, latents as float16; `to_x0` reverses it."""
        return to_uint8(x0) if self.codec is None else x0.half()

    def label_tables(self) -> list[Parameter]:
        """Return the tables whose rows tell the network a class: of label embeddings, in each block, or of prompts."""
        if isinstance(self.condition, Prompts):
            return [self.condition.table]
        return self.kind.label_tables(getattr(self.denoiser, "module", self.denoiser))  # of several processes' wrapper

    def class_embeddings(self) -> Tensor:
        """Return what tells the network each class, (K, D): a class's rows of all tables, side by side; its first prompt's."""
        rows = torch.arange(self.num_classes, device=self.device)
        if isinstance(self.condition, Labels):
            rows = self.condition.rows_of(rows)
        return torch.cat([table.detach()[rows].flatten(1) for table in self.label_tables()], dim=1)

    def named_parameters(self, *args: Any, **options: Any) -> Iterator[tuple[str, Parameter]]:
        """Yield the weights that may move, with their names: the denoiser's, or those chosen by safemax.diffusion.weights."""
        if self._listed is not None and not args and options in ({}, {"recurse": True}):
            yield from self._listed
            return
        for name, p in super().named_parameters(*args, **options):
            if not name.startswith("condition.") and any(part in name for part in self.moving):
                yield name, p

    def choose_weights(self, moving: tuple[str, ...], *, listed: bool) -> None:
        """Let the weights move whose names contain one of these parts.

        Args:
            moving: parts of names; "" is in all of them.
            listed: list them once, until the next choice: methods ask for them several times a step, and to find those of the
                paper's network takes half a millisecond. The denoiser must not change before.
        """
        self.moving, self._listed = moving, None
        self._listed = list(self.named_parameters()) if listed else None

    def null(self, c: Tensor) -> Tensor:
        """Return the null label K in the shape of c; raise InputError where the model has none."""
        if not self.has_null:
            raise InputError(f"the model has no null label: its {self.num_classes} label embeddings are all classes")
        return torch.full_like(c, self.num_classes)

    def drop_labels(self, c: Tensor, share: float) -> Tensor:
        """Replace each label by the null label with probability `share`, in [0, 1]."""
        if share == 0:
            return c
        drawn = self.row_noise(len(c), lambda n, source: torch.rand(n, device=c.device, generator=source))
        return torch.where(drawn < share, self.null(c), c)

    def times(self, n: int) -> Tensor:
        """Draw n antithetic steps, (n,) int64: half uniform in [0, T), half their mirror images T - 1 - t.

        The reference code of the DDIM, SA and SalUn family draws them so, in pretraining too.
        """

        def draw(rows: int, source: Generator | None) -> Tensor:
            t = torch.randint(0, self.T, (rows // 2 + 1,), device=self.device, generator=source)
            return torch.cat([t, self.T - 1 - t])[:rows]

        return self.row_noise(n, draw)

    def noise_like(self, x0: Tensor) -> Tensor:
        """Draw eps ~ N(0, I) in the shape of x0, (N, C, H, W)."""
        if self.row_noise.world == 1:
            return torch.randn_like(x0)
        shape, device = x0.shape[1:], x0.device
        return self.row_noise(len(x0), lambda n, source: torch.randn(n, *shape, device=device, generator=source))

    @contextmanager
    def drawing(self, row_noise: RowNoise) -> Iterator[None]:
        """Draw steps, noise and dropped labels by row for as long as the block lasts."""
        self.row_noise = row_noise
        try:
            yield
        finally:
            self.row_noise = ALONE

    def diffuse(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """Return x_t = sqrt(alpha_bar_t) x0 + sqrt(1 - alpha_bar_t) eps (equation 1 of the SAFEMax paper)."""
        alpha_bar = self.alpha_bar[t].view(-1, 1, 1, 1)
        return alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * eps

    def denoising_loss(self, x0: Tensor, c: Tensor, *, null_drop: float = 0.0, min_snr_gamma: float = 0.0) -> Tensor:
        """Return the mean over pixels and batch of ||eps - eps(x_t, t, c)||^2 (equation 2), t antithetic, labels dropped.

        Args:
            x0: images or latents, (N, C, H, W).
            c: labels, (N,) int64.
            null_drop: share of labels replaced by the null label.
            min_snr_gamma: gamma of `min_snr_weights`; 0 weighs all steps t alike.
        """
        eps = self.noise_like(x0)
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
        """Return a digest of all that decides what the model draws from given noise: weights, schedule, codec, condition."""
        return cache.key({"weights": self.digest(), "schedule": self.alpha_bar.tolist(), **self.surroundings()})

    def surroundings(self) -> dict[str, Any]:
        """Return what decides samples besides weights and schedule; {} for a model of images that is told plain labels."""
        codec = {} if self.codec is None else {"codec": self.codec.digest}
        return {**schedules.unusual(self.schedule), **codec, **self.condition.facts()}

    def save(self, path: Path | str) -> None:
        """Write a diffusers directory, which the pipeline of the model's kind opens: safetensors, JSON and text."""
        home.write(
            Path(path), self.denoiser, self.schedule, self.class_names,
            codec=self.codec, told_by=self.condition, home=self.home,
        )  # fmt: skip

    @classmethod
    def load(cls, source: Path | str, *, schedule: str = "auto", prompts: Sequence[Prompt] = ()) -> Diffusion:
        """Read a diffusers directory, or fetch one from the Hugging Face hub; only safetensors, JSON and text are ever opened.

        A directory without class names gets "0", "1", ...; the last label of a UNet is then taken to be the null label, until
        `name_classes` says otherwise.

        Args:
            source: the folder or hub id.
            schedule: for a model without a scheduler, linear, scaled_linear, cosine or sigmoid.
            prompts: for a model that is told its classes by text and has no prompts of its own.

        Raises:
            InputError: nothing is at source, a file is damaged, or the model cannot be unlearned, with the reason.
        """
        parts = folder.read(str(source), schedule, prompts)
        rest: dict[str, Any] = {"codec": parts.codec, "condition": parts.condition, "home": parts.home}
        diffusion = cls(parts.denoiser, parts.schedule, parts.class_names, **rest)
        diffusion.names_are_stated = parts.names_are_stated
        return diffusion
