from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from safemax.diffusion.convert.checkpoint import convert
from safemax.diffusion.model import Diffusion
from safemax.errors import InputError

CLASSES = ("a", "b", "c")
SIZE = 8


class Official:
    """The official network of SA and SalUn, in plain functions over a state dict of random weights."""

    def __init__(self, ch: int = 32, ch_mult: tuple[int, ...] = (1, 2), attends: int = 1, layers: int = 2) -> None:
        torch.manual_seed(0)
        self.ch, self.layers = ch, layers
        self.widths = [ch * m for m in ch_mult]
        self.attends = attends
        self.w: dict[str, Tensor] = {}
        self._embeddings()
        self._conv("conv_in", 3, ch, 3)
        skips, now = [ch], ch
        for i, width in enumerate(self.widths):
            for j in range(layers):
                now = self._stage("down", i, j, now, width)
                skips.append(now)
            if i < len(self.widths) - 1:
                self._conv(f"down.{i}.downsample.conv", now, now, 3)
                skips.append(now)
        self._residual("mid.block_1", now, now)
        self._attention("mid.attn_1", now)
        self._residual("mid.block_2", now, now)
        for i, width in reversed(list(enumerate(self.widths))):
            for j in range(layers + 1):
                now = self._stage("up", i, j, now + skips.pop(), width)
            if i:
                self._conv(f"up.{i}.upsample.conv", now, now, 3)
        self._norm("norm_out", now)
        self._conv("conv_out", now, 3, 3)

    def _put(self, name: str, *shape: int, scale: float = 1.0) -> None:
        self.w[name] = torch.randn(shape) * scale

    def _linear(self, name: str, inputs: int, outputs: int) -> None:
        self._put(f"{name}.weight", outputs, inputs, scale=inputs**-0.5)
        self._put(f"{name}.bias", outputs, scale=0.1)

    def _conv(self, name: str, inputs: int, outputs: int, side: int) -> None:
        self._put(f"{name}.weight", outputs, inputs, side, side, scale=(inputs * side * side) ** -0.5)
        self._put(f"{name}.bias", outputs, scale=0.1)

    def _norm(self, name: str, width: int) -> None:
        self.w[f"{name}.weight"] = 1 + 0.1 * torch.randn(width)
        self._put(f"{name}.bias", width, scale=0.1)

    def _embeddings(self) -> None:
        for name in ("temb", "cemb"):
            self._linear(f"{name}.dense.0", self.ch, 4 * self.ch)
            self._linear(f"{name}.dense.1", 4 * self.ch, 4 * self.ch)
        self._put("classes_emb.weight", len(CLASSES), self.ch)
        self._put("null_classes_emb", self.ch)

    def _residual(self, name: str, inputs: int, outputs: int) -> None:
        self._norm(f"{name}.norm1", inputs)
        self._conv(f"{name}.conv1", inputs, outputs, 3)
        self._linear(f"{name}.temb_cemb_proj", 8 * self.ch, outputs)
        self._norm(f"{name}.norm2", outputs)
        self._conv(f"{name}.conv2", outputs, outputs, 3)
        if inputs != outputs:
            self._conv(f"{name}.nin_shortcut", inputs, outputs, 1)

    def _attention(self, name: str, width: int) -> None:
        self._norm(f"{name}.norm", width)
        for part in ("q", "k", "v", "proj_out"):
            self._conv(f"{name}.{part}", width, width, 1)

    def _stage(self, way: str, i: int, j: int, inputs: int, outputs: int) -> int:
        self._residual(f"{way}.{i}.block.{j}", inputs, outputs)
        if i == self.attends:
            self._attention(f"{way}.{i}.attn.{j}", outputs)
        return outputs

    def __call__(self, x: Tensor, t: Tensor, c: Tensor | None) -> Tensor:
        """Return eps; c is None for the null label."""
        half = self.ch // 2
        angle = t[:, None] * torch.exp(-math.log(1e4) * torch.arange(half) / (half - 1))
        null = self.w["null_classes_emb"].expand(len(x), -1)
        step = self.mlp("temb", torch.cat([angle.sin(), angle.cos()], 1))
        label = self.mlp("cemb", null if c is None else self.w["classes_emb.weight"][c])
        emb = F.silu(torch.cat([step, label], 1))
        h = self.conv("conv_in", x)
        skips = [h]
        for i in range(len(self.widths)):
            for j in range(self.layers):
                h = self.stage("down", i, j, h, emb)
                skips.append(h)
            if i < len(self.widths) - 1:
                h = self.conv(f"down.{i}.downsample.conv", F.pad(h, (0, 1, 0, 1)), stride=2, padding=0)
                skips.append(h)
        h = self.residual("mid.block_2", self.attend("mid.attn_1", self.residual("mid.block_1", h, emb)), emb)
        for i in reversed(range(len(self.widths))):
            for j in range(self.layers + 1):
                h = self.stage("up", i, j, torch.cat([h, skips.pop()], 1), emb)
            if i:
                h = self.conv(f"up.{i}.upsample.conv", h.repeat_interleave(2, 2).repeat_interleave(2, 3))
        return self.conv("conv_out", F.silu(self.norm("norm_out", h)))

    def mlp(self, name: str, x: Tensor) -> Tensor:
        return self.linear(f"{name}.dense.1", F.silu(self.linear(f"{name}.dense.0", x)))

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def conv(self, name: str, x: Tensor, stride: int = 1, padding: int = 1) -> Tensor:
        return F.conv2d(x, self.w[f"{name}.weight"], self.w[f"{name}.bias"], stride=stride, padding=padding)

    def norm(self, name: str, x: Tensor) -> Tensor:
        return F.group_norm(x, 32, self.w[f"{name}.weight"], self.w[f"{name}.bias"], 1e-6)

    def stage(self, way: str, i: int, j: int, x: Tensor, emb: Tensor) -> Tensor:
        h = self.residual(f"{way}.{i}.block.{j}", x, emb)
        return self.attend(f"{way}.{i}.attn.{j}", h) if i == self.attends else h

    def residual(self, name: str, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv(f"{name}.conv1", F.silu(self.norm(f"{name}.norm1", x)))
        h = h + self.linear(f"{name}.temb_cemb_proj", emb)[:, :, None, None]
        h = self.conv(f"{name}.conv2", F.silu(self.norm(f"{name}.norm2", h)))
        shortcut = f"{name}.nin_shortcut"
        return h + (self.conv(shortcut, x, padding=0) if f"{shortcut}.weight" in self.w else x)

    def attend(self, name: str, x: Tensor) -> Tensor:
        h = self.norm(f"{name}.norm", x)
        q, k, v = (self.conv(f"{name}.{part}", h, padding=0).flatten(2) for part in ("q", "k", "v"))
        share = (torch.einsum("nci,ncj->nij", q, k) / math.sqrt(x.shape[1])).softmax(2)
        mixed = torch.einsum("nij,ncj->nci", share, v).reshape(x.shape)
        return x + self.conv(f"{name}.proj_out", mixed, padding=0)


def written(folder: Path, tensors: dict[str, Tensor]) -> Path:
    path = folder / "official.safetensors"
    save_file({name: value.contiguous() for name, value in tensors.items()}, path)
    return path


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(5, 3, SIZE, SIZE), torch.tensor([0, 1, 250, 500, 999]), torch.tensor([0, 1, 2, 0, 1])


@pytest.mark.parametrize(
    "shape", [{}, {"ch_mult": (1, 2, 2), "attends": 1}, {"ch_mult": (1, 2), "attends": 0, "layers": 1}]
)
def test_the_converted_network_has_the_outputs_of_the_official_one(tmp_path, shape):
    official = Official(**shape)
    model = convert(written(tmp_path, official.w), CLASSES, size=SIZE)
    x_t, t, c = inputs()
    with torch.no_grad():
        conditional, null = model(x_t, t, c), model(x_t, t, model.null(c))
    assert conditional.std() > 0.1
    assert (conditional - null).abs().max() > 0.01
    torch.testing.assert_close(conditional, official(x_t, t, c), atol=1e-4, rtol=0)
    torch.testing.assert_close(null, official(x_t, t, None), atol=1e-4, rtol=0)


def test_a_dataparallel_prefix_makes_no_difference(tmp_path):
    official = Official()
    plain = convert(written(tmp_path, official.w), CLASSES, size=SIZE)
    prefixed = convert(written(tmp_path, {f"module.{k}": v for k, v in official.w.items()}), CLASSES, size=SIZE)
    assert prefixed.digest() == plain.digest()


def test_a_converted_model_is_saved_and_loaded_like_any_other(tmp_path):
    model = convert(written(tmp_path, Official().w), CLASSES, size=SIZE)
    model.save(tmp_path / "model")
    loaded = Diffusion.load(tmp_path / "model")
    assert loaded.digest() == model.digest()
    assert loaded.class_names == CLASSES
    assert not loaded.schedule.config.clip_sample


def test_the_official_size_gives_the_published_number_of_weights(tmp_path):
    # 39,166,467 with ten classes and the null label
    official = Official(128, (1, 2, 2, 2))
    official.w["classes_emb.weight"] = torch.zeros(10, 128)
    model = convert(written(tmp_path, official.w), tuple("0123456789"), size=32)
    assert sum(p.numel() for p in model.parameters()) == 39_166_467
    assert sum(w.numel() for w in official.w.values()) == 38_632_323
    assert len(official.w) == 334


@pytest.mark.parametrize(
    "name",
    [
        "conv_in.weight",
        "conv_out.bias",
        "null_classes_emb",
        "temb.dense.1.weight",
        "cemb.dense.0.bias",
        "down.0.block.0.conv1.weight",
        "down.1.attn.0.q.weight",
        "mid.block_2.temb_cemb_proj.weight",
        "up.1.block.2.nin_shortcut.weight",
        "up.1.upsample.conv.bias",
    ],
)
@pytest.mark.parametrize("damage", ["missing", "another shape", "another rank"])
def test_a_missing_or_misshapen_tensor_is_named_in_one_line(tmp_path, name, damage):
    tensors = Official().w
    value = tensors.pop(name)
    if damage != "missing":
        tensors[name] = value[1:] if damage == "another shape" else value[..., None]
    with pytest.raises(InputError, match=name.replace(".", r"\.")) as caught:
        convert(written(tmp_path, tensors), CLASSES, size=SIZE)
    assert "\n" not in str(caught.value)


def test_a_superfluous_tensor_is_named(tmp_path):
    tensors = Official().w | {"logvar": torch.zeros(1000)}
    with pytest.raises(InputError, match="logvar is unexpected"):
        convert(written(tmp_path, tensors), CLASSES, size=SIZE)


def test_another_number_of_classes_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"classes_emb.weight has the shape \(3, 32\), not \(2, 32\)"):
        convert(written(tmp_path, Official().w), ("a", "b"), size=SIZE)


def test_a_file_that_is_no_safetensors_is_refused_in_one_line(tmp_path):
    (tmp_path / "ckpt.pth").write_bytes(b"PK\x03\x04 a pickle")
    with pytest.raises(InputError, match="is not a readable safetensors file") as caught:
        convert(tmp_path / "ckpt.pth", CLASSES, size=SIZE)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="is not a readable safetensors file"):
        convert(tmp_path / "nowhere", CLASSES, size=SIZE)


def test_an_image_size_that_the_levels_cannot_halve_is_refused(tmp_path):
    with pytest.raises(InputError, match="size = 9 is not divisible by 2"):
        convert(written(tmp_path, Official().w), CLASSES, size=9)
