"""The entry point that registers an official checkpoint as a base; safemax.diffusion.convert.unet has its own tests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from pipelines.convert import convert
from pipelines.registry import model_versions
from safemax.diffusion.model import Diffusion
from safemax.errors import InputError
from tests.safemax.diffusion.test_convert_unet import CLASSES, SIZE, Official


@pytest.fixture
def folder(mlflow_store, tmp_path):
    """Return a folder with the official network's state dict, its outputs on some inputs, and images of its classes."""
    official = Official()
    save_file(official.w, tmp_path / "official.safetensors")
    x_t, t = torch.randn(4, 3, SIZE, SIZE), torch.tensor([0, 10, 500, 999])
    c = torch.tensor([0, 1, 2, len(CLASSES)])
    with torch.no_grad():
        eps = torch.cat([official(x_t[:3], t[:3], c[:3]), official(x_t[3:], t[3:], None)])
    save_file({"x_t": x_t, "t": t, "c": c, "eps": eps}, tmp_path / "reference.safetensors")
    save_file({"x_t": x_t, "t": t, "c": c, "eps": eps + 2e-4}, tmp_path / "other.safetensors")
    for split in ("train", "test"):
        for name in CLASSES:
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            Image.new("RGB", (SIZE, SIZE), (len(split), 9, 200)).save(folder / "0.png")
    return tmp_path


def run_convert(folder: Path, *more: str) -> None:
    convert([f"--state_dict={folder}/official.safetensors", f"--data={folder}/data", "--name=theirs", *more])


def test_a_checkpoint_becomes_the_base_with_its_check_as_evidence(folder):
    run_convert(folder, f"--reference={folder}/reference.safetensors")
    assert model_versions.find("theirs", "base") == "models:/theirs/1"
    facts = model_versions.evidence("models:/theirs@base")
    assert facts["forgotten"] == []
    known = json.loads(model_versions.version_of("models:/theirs/1").tags["data.options"])
    assert known["data"] == f"{folder}/data", "the next command need not be told the data"
    assert facts["metrics"]["convert/largest_difference"] < 1e-4
    assert facts["metrics"]["convert/denoising_loss"] > 0.5  # random weights denoise nothing


def test_with_a_folder_as_output_nothing_is_registered(folder, mlflow_store, capsys):
    run_convert(folder, f"--output={folder}/model")
    assert Diffusion.load(folder / "model").class_names == CLASSES
    assert not list(mlflow_store.search_registered_models())
    assert "denoising loss" in capsys.readouterr().out
    with pytest.raises(InputError, match="already exists; name a new folder"):
        run_convert(folder, f"--output={folder}/model")


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("--reference={}/other.safetensors", "the outputs differ by 0.0002; up to 0.0001 is allowed"),
        ("--reference={}/official.safetensors", "lacks x_t, t, c, eps"),
        ("--reference={}/nothing", "nothing is not a safetensors file"),
    ],
)
def test_a_reference_that_does_not_agree_or_cannot_be_read_registers_nothing(folder, mlflow_store, word, line):
    with pytest.raises(InputError, match=line):
        run_convert(folder, word.format(folder))
    assert not list(mlflow_store.search_registered_models())


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"x_t": torch.zeros(2, 3, 4, 4)}, r"x_t has the shape \(2, 3, 4, 4\)"),
        ({"c": torch.full((2,), 99)}, "c has values outside 0 to"),
        ({"t": torch.tensor([0, 1000])}, "t has values outside 0 to 999"),
    ],
)
def test_a_reference_of_other_shapes_or_labels_is_refused(folder, tmp_path, change, line):
    shape = (2, 3, SIZE, SIZE)
    fits = {
        "x_t": torch.zeros(shape),
        "t": torch.zeros(2).long(),
        "c": torch.zeros(2).long(),
        "eps": torch.zeros(shape),
    }
    save_file({**fits, **change}, tmp_path / "reference.safetensors")
    with pytest.raises(InputError, match=line):
        run_convert(folder, f"--reference={tmp_path}/reference.safetensors")


def test_a_network_that_gives_no_number_is_refused(folder, tmp_path):
    weights = load_file(f"{folder}/official.safetensors")
    first = next(iter(weights))
    save_file({**weights, first: weights[first] * torch.nan}, tmp_path / "nan.safetensors")
    with pytest.raises(InputError, match="denoising loss is nan"):
        convert([f"--state_dict={tmp_path}/nan.safetensors", f"--data={folder}/data", "--name=theirs"])


def test_without_a_checkpoint_it_says_what_it_needs():
    with pytest.raises(InputError, match="state_dict has no value"):
        convert([])
