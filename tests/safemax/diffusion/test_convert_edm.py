"""EDM's network: beside plain functions over its tensors, and beside NVlabs' own code where SAFEMAX_EDM names a checkout of it."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMPipeline, DDPMScheduler
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from pipelines import convert as entry_point
from pipelines.registry import model_versions
from safemax.diffusion.convert.checkpoint import convert
from safemax.diffusion.model import Diffusion
from safemax.diffusion.networks.edm import EDMUNet
from safemax.diffusion.sampling import Sampler, sample
from safemax.errors import InputError

CLASSES = ("a", "b", "c")
SIDE, WIDTH = 8, 8
CLOSE: dict[str, Any] = {"rtol": 0.0, "atol": 1e-5}


class Official:
    """DDPM++ with two levels of one block, attention at the lower one, in plain functions over random tensors."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.w: dict[str, Tensor] = {}
        for name, inputs, outputs in (
            ("map_label", 3, WIDTH),
            ("map_layer0", WIDTH, 4 * WIDTH),
            ("map_layer1", 4 * WIDTH, 4 * WIDTH),
        ):
            self._weights(name, outputs, inputs)
        self.w["map_augment.weight"] = torch.randn(WIDTH, 9)
        self._weights("enc.8x8_conv", WIDTH, 3, 3, 3)
        self._block("enc.8x8_block0", WIDTH, 16)
        self._block("enc.4x4_down", 16, 16, resampled=True)
        self._block("enc.4x4_block0", 16, 16, attends=True)
        self._block("dec.4x4_in0", 16, 16, attends=True)
        self._block("dec.4x4_in1", 16, 16)
        self._block("dec.4x4_block0", 32, 16)
        self._block("dec.4x4_block1", 32, 16, attends=True)
        self._block("dec.8x8_up", 16, 16, resampled=True)
        self._block("dec.8x8_block0", 32, 16)
        self._block("dec.8x8_block1", 16 + WIDTH, 16)
        self._norm("dec.8x8_aux_norm", 16)
        self._weights("dec.8x8_aux_conv", 3, 16, 3, 3)

    def state_dict(self) -> dict[str, Tensor]:
        return {f"model.{name}": value for name, value in self.w.items()}

    def _weights(self, name: str, outputs: int, *inputs: int) -> None:
        self.w[f"{name}.weight"] = torch.randn(outputs, *inputs) / math.prod(inputs) ** 0.5
        self.w[f"{name}.bias"] = torch.randn(outputs) * 0.1

    def _norm(self, name: str, width: int) -> None:
        self.w[f"{name}.weight"], self.w[f"{name}.bias"] = 1 + 0.1 * torch.randn(width), 0.1 * torch.randn(width)

    def _block(self, name: str, inputs: int, outputs: int, *, resampled: bool = False, attends: bool = False) -> None:
        self._norm(f"{name}.norm0", inputs)
        self._norm(f"{name}.norm1", outputs)
        self._weights(f"{name}.conv0", outputs, inputs, 3, 3)
        self._weights(f"{name}.affine", outputs, 4 * WIDTH)
        self._weights(f"{name}.conv1", outputs, outputs, 3, 3)
        if resampled or inputs != outputs:
            self._weights(f"{name}.skip", outputs, inputs, 1, 1)
        if resampled:
            for layer in ("conv0", "skip"):
                self.w[f"{name}.{layer}.resample_filter"] = torch.full((1, 1, 2, 2), 0.25)
        if attends:
            self._norm(f"{name}.norm2", outputs)
            self._weights(f"{name}.qkv", 3 * outputs, outputs, 1, 1)
            self._weights(f"{name}.proj", outputs, outputs, 1, 1)

    def conv(self, name: str, x: Tensor) -> Tensor:
        weight = self.w[f"{name}.weight"]
        return F.conv2d(x, weight, self.w[f"{name}.bias"], padding=weight.shape[-1] // 2)

    def norm(self, name: str, x: Tensor) -> Tensor:
        return F.group_norm(x, min(32, x.shape[1] // 4), self.w[f"{name}.weight"], self.w[f"{name}.bias"], eps=1e-6)

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.w[f"{name}.weight"], self.w[f"{name}.bias"])

    def block(self, name: str, x: Tensor, emb: Tensor) -> Tensor:
        h, way = F.silu(self.norm(f"{name}.norm0", x)), name.rpartition("_")[2]
        if way == "down":
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        if way == "up":
            h, x = h.repeat_interleave(2, 2).repeat_interleave(2, 3), x.repeat_interleave(2, 2).repeat_interleave(2, 3)
        h = self.conv(f"{name}.conv0", h) + self.linear(f"{name}.affine", emb)[:, :, None, None]
        h = self.conv(f"{name}.conv1", F.silu(self.norm(f"{name}.norm1", h)))
        x = (h + (self.conv(f"{name}.skip", x) if f"{name}.skip.weight" in self.w else x)) / math.sqrt(2)
        if f"{name}.qkv.weight" not in self.w:
            return x
        n, channels, *_ = x.shape
        q, k, v = self.conv(f"{name}.qkv", self.norm(f"{name}.norm2", x)).reshape(n, channels, 3, -1).unbind(2)
        seen = v @ (q.transpose(1, 2) @ k / math.sqrt(channels)).softmax(-1).transpose(1, 2)
        return (self.conv(f"{name}.proj", seen.reshape(x.shape)) + x) / math.sqrt(2)

    def denoised(self, x: Tensor, sigma: Tensor, c: Tensor) -> Tensor:
        """Return D(x, sigma, c) of table 1 of the paper, sigma_data = 0.5."""
        angles = (sigma.log() / 4)[:, None] * 1e4 ** (-torch.arange(WIDTH // 2) / (WIDTH // 2 - 1))
        label = self.linear("map_label", F.one_hot(c, 3).float() * math.sqrt(3))
        emb = torch.cat([angles.sin(), angles.cos()], 1) + label
        emb = F.silu(self.linear("map_layer1", F.silu(self.linear("map_layer0", emb))))
        s = sigma.view(-1, 1, 1, 1)
        skips = [self.conv("enc.8x8_conv", x / (s**2 + 0.25).sqrt())]
        for name in ("8x8_block0", "4x4_down", "4x4_block0"):
            skips.append(self.block(f"enc.{name}", skips[-1], emb))
        h = skips[-1]
        for name in ("4x4_in0", "4x4_in1", "4x4_block0", "4x4_block1", "8x8_up", "8x8_block0", "8x8_block1"):
            joined = torch.cat([h, skips.pop()], 1) if "block" in name else h
            h = self.block(f"dec.{name}", joined, emb)
        raw = self.conv("dec.8x8_aux_conv", F.silu(self.norm("dec.8x8_aux_norm", h)))
        return 0.25 / (s**2 + 0.25) * x + s * 0.5 / (s**2 + 0.25).sqrt() * raw


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_file(Official().state_dict(), tmp_path / "edm.safetensors")
    return tmp_path / "edm.safetensors"


def inputs(side: int) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(6, 3, side, side), torch.tensor([0, 1, 10, 300, 700, 999]), torch.tensor([0, 1, 2, 2, 1, 0])


def denoised(diffusion: Diffusion, x_t: Tensor, t: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return x, sigma and what our eps says of the image, D = x - sigma eps."""
    alpha_bar = diffusion.alpha_bar[t].view(-1, 1, 1, 1)
    x, sigma = x_t / alpha_bar.sqrt(), ((1 - alpha_bar) / alpha_bar).sqrt()
    with torch.no_grad():
        return x, sigma.flatten(), x - sigma * diffusion(x_t, t, c)


def assert_close(ours: Tensor, theirs: Tensor, sigma: Tensor) -> None:
    """Compare D where there is little noise, eps where there is much: there x is 150 times an image, rounded."""
    torch.testing.assert_close(
        ours / sigma.clamp_min(1).view(-1, 1, 1, 1), theirs / sigma.clamp_min(1).view(-1, 1, 1, 1), **CLOSE
    )


def test_its_eps_says_what_the_official_denoiser_says_of_the_image(path: Path) -> None:
    diffusion = convert(path, CLASSES, size=SIDE)
    x_t, t, c = inputs(SIDE)
    x, sigma, ours = denoised(diffusion, x_t, t, c)
    assert sigma[0] < 0.011
    assert sigma[-1] > 150
    assert_close(ours, Official().denoised(x, sigma, c), sigma)
    assert not diffusion.has_null


def test_it_is_saved_loaded_opened_by_diffusers_and_drawn_from(path: Path, tmp_path: Path) -> None:
    diffusion = convert(path, CLASSES, size=SIDE)
    diffusion.save(tmp_path / "model")
    again = Diffusion.load(tmp_path / "model").eval()
    assert (again.identity(), again.class_names, again.architecture) == (diffusion.identity(), CLASSES, "edm")
    x_t, t, c = inputs(SIDE)
    assert torch.equal(again(x_t, t, c), diffusion(x_t, t, c))
    pipeline = DDPMPipeline.from_pretrained(tmp_path / "model", local_files_only=True)
    assert isinstance(pipeline.unet, EDMUNet)
    images = sample(again, torch.tensor([0, 2]), Sampler("ddim", 10, 1.0, 0.0, True), seed=0)
    assert images.shape == (2, 3, SIDE, SIDE)
    assert images.std() > 0.05


def test_it_is_registered_as_a_base_with_its_samples_unguided(path: Path, tmp_path: Path, mlflow_store: Any) -> None:
    for split in ("train", "test"):
        for number, name in enumerate(CLASSES):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            Image.new("RGB", (SIDE, SIDE), (9, 80 * number, 200)).save(tmp_path / "data" / split / name / "0.png")
    entry_point.convert([f"--state_dict={path}", f"--data={tmp_path}/data", "--name=edm"])
    diffusion = Diffusion.load(model_versions.resolve("models:/edm@base"))
    assert isinstance(diffusion.denoiser, EDMUNet)
    assert not diffusion.has_null


def test_it_predicts_eps_alone_and_only_of_a_model_s_schedule() -> None:
    denoiser = EDMUNet(
        sample_size=8, model_channels=8, block_out_channels=(8, 8), layers_per_block=1, num_class_embeds=3
    )
    with pytest.raises(InputError, match="prediction_type = v_prediction is not allowed with EDM's network"):
        Diffusion(denoiser, DDPMScheduler(1000, prediction_type="v_prediction"), CLASSES)
    with pytest.raises(IndexError):
        denoiser(torch.zeros(1, 3, 8, 8), torch.tensor([5]), torch.tensor([0]))


@pytest.mark.parametrize(
    ("change", "names", "line"),
    [
        ({"model.enc.8x8_block0.affine.bias": None}, CLASSES, "enc.8x8_block0.affine.bias is missing"),
        ({"model.enc.8x8_block0.extra": torch.ones(1)}, CLASSES, "extra is unexpected"),
        ({"model.map_label.weight": None}, CLASSES, "map_label.weight is missing: it is not told a class"),
        ({}, ("a", "b"), r"map_label.weight has the shape \(8, 3\), not \(8, 2\)"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_by_the_tensor(
    tmp_path: Path, change: dict[str, Tensor | None], names: tuple[str, ...], line: str
) -> None:
    tensors = {**Official().state_dict(), **change}
    save_file({name: value for name, value in tensors.items() if value is not None}, tmp_path / "edm.safetensors")
    with pytest.raises(InputError, match=f"is not EDM's network: .*{line}"):
        convert(tmp_path / "edm.safetensors", names, size=SIDE)


VARIANTS: dict[str, dict[str, Any]] = {
    "ddpmpp": {
        "embedding_type": "positional", "encoder_type": "standard", "channel_mult_noise": 1, "resample_filter": [1, 1],
    },
    "ncsnpp": {
        "embedding_type": "fourier", "encoder_type": "residual", "channel_mult_noise": 2, "resample_filter": [1, 3, 3, 1],
    },
}  # fmt: skip


@pytest.mark.skipif("SAFEMAX_EDM" not in os.environ, reason="SAFEMAX_EDM names no checkout of github.com/NVlabs/edm")
@pytest.mark.parametrize("variant", VARIANTS)
def test_it_says_what_nvlabs_code_says(variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, os.environ["SAFEMAX_EDM"]])
    from training.networks import EDMPrecond

    torch.manual_seed(0)
    theirs = EDMPrecond(
        16, 3, label_dim=3, model_type="SongUNet", decoder_type="standard", model_channels=16, channel_mult=[1, 2, 2],
        num_blocks=2, attn_resolutions=[8], augment_dim=9, dropout=0.13, **VARIANTS[variant],
    ).eval()  # fmt: skip
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(0.1 * torch.randn_like(p))
    save_file({name: value.contiguous() for name, value in theirs.state_dict().items()}, tmp_path / "edm.safetensors")
    diffusion = convert(tmp_path / "edm.safetensors", CLASSES, size=16)
    x_t, t, c = inputs(16)
    x, sigma, ours = denoised(diffusion, x_t, t, c)
    with torch.no_grad():
        assert_close(ours, theirs(x, sigma, F.one_hot(c, 3)), sigma)
        raw = diffusion.denoiser.raw(x_t, sigma.log() / 4, c)
        torch.testing.assert_close(raw, theirs.model(x_t, sigma.log() / 4, F.one_hot(c, 3).float()), **CLOSE)
