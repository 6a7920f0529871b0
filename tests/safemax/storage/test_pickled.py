"""Weights that exist as .bin alone become safetensors where the user asks for it; a pickle of anything else is refused."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipelines.convert import convert
from safemax.diffusion.model import Diffusion
from safemax.errors import InputError
from safemax.storage.pickled import with_safetensors
from tests.support import tiny_models


class Harm:
    """What a pickle would run."""

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (Path("harmed"),)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """Write a tiny model as older releases did."""
    folder = tmp_path / "old"
    tiny_models.diffusion().save(folder)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    return folder


def test_a_folder_of_pickles_becomes_one_of_safetensors_with_the_same_weights(
    old: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    convert([f"--bin={old}", f"--output={tmp_path / 'new'}"])
    said = capsys.readouterr().out
    assert (
        "opened by torch.load(weights_only=True), which builds tensors alone: unet/diffusion_pytorch_model.bin" in said
    )
    assert Diffusion.load(tmp_path / "new").digest() == tiny_models.diffusion().digest()
    assert not list((tmp_path / "new").rglob("*.bin"))


def test_a_text_encoders_weights_get_the_name_that_transformers_opens(tmp_path: Path) -> None:
    (tmp_path / "a" / "text_encoder").mkdir(parents=True)
    torch.save({"weight": torch.ones(2)}, tmp_path / "a" / "text_encoder" / "pytorch_model.fp16.bin")
    assert with_safetensors(tmp_path / "a", tmp_path / "b") == ["text_encoder/pytorch_model.fp16.bin"]
    assert load_file(tmp_path / "b" / "text_encoder" / "model.fp16.safetensors")["weight"].tolist() == [1, 1]
    with pytest.raises(InputError, match="has no weights that exist only as .bin"):
        with_safetensors(tmp_path / "b", tmp_path / "c")


@pytest.mark.parametrize("content", [{"weight": Harm()}, Harm()])
def test_a_pickle_with_code_is_refused_and_its_code_does_not_run(
    old: Path, tmp_path: Path, content: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = old / "unet" / "diffusion_pytorch_model.bin"
    torch.save(content, path)
    with pytest.raises(InputError, match=r"diffusion_pytorch_model.bin is not opened: it holds more than tensors"):
        convert([f"--bin={old}", f"--output={tmp_path / 'new'}"])
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(InputError, match="is not opened"):
        convert([f"--bin={old}", f"--output={tmp_path / 'new'}"])
    assert not (tmp_path / "harmed").exists()
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("content", [[torch.ones(1)], {"weight": 3}])
def test_what_is_no_state_dict_is_refused(old: Path, tmp_path: Path, content: object) -> None:
    torch.save(content, old / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(InputError, match="holds no state dict"):
        with_safetensors(old, tmp_path / "new")


def test_bin_is_given_with_a_place_for_the_result_alone(old: Path, tmp_path: Path) -> None:
    for argv in ([], ["--state_dict=x", f"--output={tmp_path / 'new'}"]):
        with pytest.raises(InputError, match="bin needs output, a new folder, and is given without state_dict"):
            convert([f"--bin={old}", *argv])
