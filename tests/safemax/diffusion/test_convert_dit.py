"""The official DiT: beside plain functions over its tensors, and beside its own code where SAFEMAX_DIT names a checkout of it."""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import DiTPipeline
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.tiny_pipelines import autoencoder
from pipelines import convert as entry_point
from safemax.diffusion.convert.checkpoint import convert
from safemax.diffusion.model import Diffusion
from safemax.diffusion.networks.dit import OfficialDiT
from safemax.errors import InputError
from tests.support import tiny_models

CLASSES = ("a", "b", "c")
CHANNELS, SIDE, WIDTH, HEADS, DEPTH = 4, 4, 16, 2, 2
CLOSE: dict[str, Any] = {"rtol": 0.0, "atol": 1e-5}


def positions(width: int, side: int) -> Tensor:
    """Return sines and cosines of columns, then rows, (1, side * side, width)."""
    frequencies = 1e4 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    angles = [at.flatten().double()[:, None] * frequencies for at in (columns, rows)]
    return torch.cat([part for each in angles for part in (each.sin(), each.cos())], 1).float()[None]


def tensors(labels: int = len(CLASSES) + 1) -> dict[str, Tensor]:
    """Return random tensors under the official names: patches of 2, and a variance."""
    torch.manual_seed(0)
    shapes = {
        "x_embedder.proj": (WIDTH, CHANNELS, 2, 2), "t_embedder.mlp.0": (WIDTH, 256), "t_embedder.mlp.2": (WIDTH, WIDTH),
        "final_layer.linear": (4 * 2 * CHANNELS, WIDTH), "final_layer.adaLN_modulation.1": (2 * WIDTH, WIDTH),
    }  # fmt: skip
    for i in range(DEPTH):
        shapes |= {
            f"blocks.{i}.attn.qkv": (3 * WIDTH, WIDTH), f"blocks.{i}.attn.proj": (WIDTH, WIDTH),
            f"blocks.{i}.mlp.fc1": (4 * WIDTH, WIDTH), f"blocks.{i}.mlp.fc2": (WIDTH, 4 * WIDTH),
            f"blocks.{i}.adaLN_modulation.1": (6 * WIDTH, WIDTH),
        }  # fmt: skip
    w = {"y_embedder.embedding_table.weight": torch.randn(labels, WIDTH), "pos_embed": positions(WIDTH, SIDE // 2)}
    for name, shape in shapes.items():
        w[f"{name}.weight"] = torch.randn(shape) / math.prod(shape[1:]) ** 0.5
        w[f"{name}.bias"] = 0.1 * torch.randn(shape[0])
    return w


def official(w: dict[str, Tensor], x: Tensor, t: Tensor, c: Tensor) -> Tensor:
    """Return eps and variance, (N, 2C, H, W)."""
    angles = t[:, None] * 1e4 ** (-torch.arange(128) / 128)
    step = F.silu(linear(w, "t_embedder.mlp.0", torch.cat([angles.cos(), angles.sin()], 1)))
    told = F.silu(linear(w, "t_embedder.mlp.2", step) + w["y_embedder.embedding_table.weight"][c])
    h = F.conv2d(x, w["x_embedder.proj.weight"], w["x_embedder.proj.bias"], stride=2).flatten(2).transpose(1, 2)
    h = h + w["pos_embed"]
    for i in range(DEPTH):
        at = f"blocks.{i}"
        shift, scale, gate, shift_2, scale_2, gate_2 = linear(w, f"{at}.adaLN_modulation.1", told)[:, None].chunk(6, 2)
        h = h + gate * attention(w, f"{at}.attn", norm(h) * (1 + scale) + shift)
        inner = F.gelu(linear(w, f"{at}.mlp.fc1", norm(h) * (1 + scale_2) + shift_2), approximate="tanh")
        h = h + gate_2 * linear(w, f"{at}.mlp.fc2", inner)
    shift, scale = linear(w, "final_layer.adaLN_modulation.1", told)[:, None].chunk(2, 2)
    h = linear(w, "final_layer.linear", norm(h) * (1 + scale) + shift)
    n, half = len(x), SIDE // 2
    return h.view(n, half, half, 2, 2, 2 * CHANNELS).permute(0, 5, 1, 3, 2, 4).reshape(n, 2 * CHANNELS, SIDE, SIDE)


def attention(w: dict[str, Tensor], name: str, h: Tensor) -> Tensor:
    q, k, v = linear(w, f"{name}.qkv", h).view(*h.shape[:2], 3, HEADS, -1).permute(2, 0, 3, 1, 4)
    seen = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1) @ v
    return linear(w, f"{name}.proj", seen.transpose(1, 2).flatten(2))


def linear(w: dict[str, Tensor], name: str, h: Tensor) -> Tensor:
    return F.linear(h, w[f"{name}.weight"], w[f"{name}.bias"])


def norm(h: Tensor) -> Tensor:
    return F.layer_norm(h, h.shape[-1:], eps=1e-6)


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(4, CHANNELS, SIDE, SIDE), torch.tensor([0, 10, 500, 999]), torch.tensor([0, 1, 2, len(CLASSES)])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_file(tensors(), tmp_path / "dit.safetensors")
    return tmp_path / "dit.safetensors"


def test_it_predicts_what_the_official_network_predicts_null_label_and_variance_included(path: Path) -> None:
    diffusion = convert(path, CLASSES, size=8, heads=HEADS)
    x_t, t, c = inputs()
    with torch.no_grad():
        theirs = official(tensors(), x_t, t, c)
        torch.testing.assert_close(diffusion(x_t, t, c), theirs[:, :CHANNELS], **CLOSE)
        torch.testing.assert_close(diffusion.denoiser(x_t, t, class_labels=c).sample, theirs, **CLOSE)
    assert diffusion.has_null


def test_it_is_saved_with_its_codec_loaded_and_opened_by_diffusers(path: Path, tmp_path: Path) -> None:
    autoencoder(8).save_pretrained(tmp_path / "vae")
    diffusion = convert(path, CLASSES, size=8, heads=HEADS, vae=tmp_path / "vae")
    assert (diffusion.x0_shape, diffusion.image_shape) == ((CHANNELS, SIDE, SIDE), (1, 8, 8))
    diffusion.save(tmp_path / "model")
    again = Diffusion.load(tmp_path / "model").eval()
    assert again.identity() == diffusion.identity()
    x_t, t, c = inputs()
    assert torch.equal(again(x_t, t, c), diffusion(x_t, t, c))
    pipeline: Any = DiTPipeline.from_pretrained(tmp_path / "model", local_files_only=True)
    assert isinstance(pipeline.transformer, OfficialDiT)
    assert torch.equal(pipeline.transformer(x_t, t, class_labels=c).sample[:, :CHANNELS], diffusion(x_t, t, c))


def test_a_pickle_of_tensors_is_converted_where_that_is_asked_for_with_the_data_s_classes_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["a", "b", "z", "c"]
    torch.save(tensors(len(names) + 1), tmp_path / "dit.pt")
    autoencoder(8).save_pretrained(tmp_path / "vae")
    tiny_models.write_images(tmp_path / "data", most=6)
    (tmp_path / "labels.json").write_text(json.dumps({str(k): f"{name}, other {name}" for k, name in enumerate(names)}))
    argv = [
        f"--state_dict={tmp_path}/dit.pt", f"--heads={HEADS}", f"--vae={tmp_path}/vae", f"--labels={tmp_path}/labels.json",
        f"--data={tmp_path}/data", "--size=8", f"--output={tmp_path}/model",
    ]  # fmt: skip
    with pytest.raises(InputError, match="open_pickle = true"):
        entry_point.convert(argv)
    entry_point.convert([*argv, "--open_pickle=true"])
    assert "opened by torch.load(weights_only=True), which builds tensors alone" in capsys.readouterr().out
    assert Diffusion.load(tmp_path / "model").class_names == tuple(names)


@pytest.mark.parametrize(
    ("change", "names", "heads", "line"),
    [
        ({"blocks.1.attn.proj.bias": None}, CLASSES, HEADS, "blocks.1.attn.proj.bias is missing"),
        ({"blocks.0.q_norm.weight": torch.ones(1)}, CLASSES, HEADS, "blocks.0.q_norm.weight is unexpected"),
        ({"pos_embed": torch.zeros(1, 4, WIDTH)}, CLASSES, HEADS, "pos_embed holds other positions"),
        ({}, ("a", "b"), HEADS, "it has 4 labels, the null label among them; 2 classes need 3"),
        ({}, CLASSES, 0, r"its width is 16, and heads = 0 does not divide it; published widths are 384 \(6 heads\)"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(
    tmp_path: Path, change: dict[str, Tensor | None], names: tuple[str, ...], heads: int, line: str
) -> None:
    changed = {**tensors(), **change}
    save_file({name: value for name, value in changed.items() if value is not None}, tmp_path / "dit.safetensors")
    with pytest.raises(InputError, match=f"is not the official DiT: {line}"):
        convert(tmp_path / "dit.safetensors", names, size=8, heads=heads)


def test_what_only_a_dit_has_is_refused_for_another_network(tmp_path: Path) -> None:
    save_file({"conv_in.weight": torch.ones(1)}, tmp_path / "unet.safetensors")
    with pytest.raises(
        InputError, match="vae and heads are for a DiT, which .* is not: x_embedder.proj.weight is missing"
    ):
        convert(tmp_path / "unet.safetensors", CLASSES, size=8, heads=4)


@pytest.mark.skipif(
    "SAFEMAX_DIT" not in os.environ,
    reason="SAFEMAX_DIT names no checkout of github.com/facebookresearch/DiT (needs timm)",
)
def test_it_predicts_what_the_official_code_predicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [os.environ["SAFEMAX_DIT"], *sys.path])
    from models import DiT

    torch.manual_seed(0)
    theirs = DiT(input_size=SIDE, hidden_size=WIDTH, depth=DEPTH, num_heads=HEADS, num_classes=len(CLASSES)).eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(0.05 * torch.randn_like(p) if p.requires_grad else 0)
    save_file(theirs.state_dict(), tmp_path / "dit.safetensors")
    diffusion = convert(tmp_path / "dit.safetensors", CLASSES, size=8, heads=HEADS)
    x_t, t, c = inputs()
    with torch.no_grad():
        torch.testing.assert_close(diffusion.denoiser(x_t, t, class_labels=c).sample, theirs(x_t, t, c), **CLOSE)
