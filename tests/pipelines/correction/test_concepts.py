"""A text model and a table of concepts become data, prompts and a whole model, before any work."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks.tiny_pipelines import autoencoder, write_dit, write_stable_diffusion
from pipelines.cli.options import DataOptions, ForgetOptions, ModelOptions
from pipelines.cli.parser import Arguments, parse
from pipelines.correction import concepts
from pipelines.correction.source import ready
from safemax.diffusion.condition import Prompts
from safemax.diffusion.model import Diffusion
from safemax.errors import InputError
from safemax.evaluation.protocol import Evaluation
from tests.support import tiny_models

GROUPS: dict[str, type] = {"data": DataOptions, "forget": ForgetOptions, "model": ModelOptions}
TABLE = "prompt,name,role,images\nan a,a,forget,\na b,b,retain,\na c,c,,pictures\nthe letter a,a,held_out,\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    write_stable_diffusion(folder / "text", autoencoder(8, width=8), ("the", "letter"), width=8)
    write_dit(folder / "dit", autoencoder(8, width=8), ("q, queue", "c, sea", "a, ay", "b, bee"), layers=1)
    return folder


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFEMAX_CACHE", str(tmp_path / "cache"))


def arguments(*argv: str) -> Arguments:
    return parse("test", "", GROUPS, argv)


def test_concepts_without_images_are_drawn_once_and_the_table_says_what_is_forgotten(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "letters.csv").write_text(TABLE)
    (tmp_path / "pictures").mkdir()
    for k in range(10):
        Image.new("L", (8, 8), 20 * k).save(tmp_path / "pictures" / f"{k}.png")
    given = arguments(f"--model={folder / 'text'}", f"--concepts={tmp_path / 'letters.csv'}", "--concept_images=10")
    data = concepts.data_of(given)
    dataset = data.load(quiet=True)
    assert (dataset.name, dataset.class_names, dataset.image_shape) == ("letters", ("a", "b", "c"), (1, 8, 8))
    assert (len(dataset.train), len(dataset.test)) == (24, 6)
    assert concepts.forget_of(given) == "a"
    written = {path: path.stat().st_mtime_ns for path in Path(data.data).rglob("*.png")}
    assert concepts.data_of(given) == data
    assert {path: path.stat().st_mtime_ns for path in Path(data.data).rglob("*.png")} == written
    assert "the images of the concepts are in" in capsys.readouterr().out
    prompts = concepts.prompts_of(given["model"], dataset.class_names)
    source = ready(str(folder / "text"), "auto", dataset, Evaluation(), prompts)
    diffusion = Diffusion.load(source.address)
    assert isinstance(diffusion.condition, Prompts)
    assert diffusion.class_names == ("a", "b", "c")
    assert diffusion.condition.asked_by(0, held_out=True) == [4]


def pictures(folder: Path, *shades: int) -> Path:
    """Write a picture of each shade, and a table whose one class has them; return the table."""
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    for k, shade in enumerate(shades):
        Image.new("L", (8, 8), shade).save(folder / "pictures" / f"{k}.png")
    table = folder / "letters.csv"
    table.write_text("prompt,name,role,images\nan a,a,forget,pictures\na b,b,,pictures\n")
    return table


def test_images_of_concepts_are_known_by_their_content(folder: Path, tmp_path: Path) -> None:
    def data(table: Path) -> str:
        return concepts.data_of(arguments(f"--model={folder / 'text'}", f"--concepts={table}")).data

    first = data(pictures(tmp_path / "here", *range(10)))
    assert data(pictures(tmp_path / "there", *range(10))) == first, "moved"
    assert data(pictures(tmp_path / "here", *range(1, 11))) != first, "edited in place"
    assert data(pictures(tmp_path / "there", *range(11))) != first, "one more"
    (tmp_path / "there" / "pictures" / "10.png").unlink()
    assert data(tmp_path / "there" / "letters.csv") == first, "as before"
    (tmp_path / "here" / "pictures" / "0.png").unlink()
    assert data(tmp_path / "here" / "letters.csv") != first, "one less"


@pytest.mark.parametrize("steps", [1, 3, 20, 50])
def test_a_model_of_few_steps_draws_its_concepts(folder: Path, tmp_path: Path, steps: int) -> None:
    short = tmp_path / "short"
    shutil.copytree(folder / "text", short)
    config = short / "scheduler" / "scheduler_config.json"
    config.write_text(
        json.dumps(json.loads(config.read_text()) | {"num_train_timesteps": steps, "trained_betas": None})
    )
    (tmp_path / "letters.csv").write_text("prompt,name,role\nan a,a,forget\na b,b,\n")
    data = concepts.data_of(
        arguments(f"--model={short}", f"--concepts={tmp_path / 'letters.csv'}", "--concept_images=10")
    )
    assert len(data.load(quiet=True).train) == 16


def test_a_template_tells_the_classes_of_the_data(folder: Path) -> None:
    given = arguments(f"--model={folder / 'text'}", "--prompt=the letter {}", "--data=digits", "--forget=b")
    assert concepts.data_of(given) == given["data"]
    assert concepts.forget_of(given) == "b"
    dataset = tiny_models.dataset()
    source = ready(
        str(folder / "text"), "auto", dataset, Evaluation(), concepts.prompts_of(given["model"], ("a", "b", "c"))
    )
    assert Diffusion.load(source.address).condition.ask("the letter b", ("a", "b", "c")) == (1, 1)


def test_concepts_of_no_named_model_are_refused(tmp_path: Path) -> None:
    (tmp_path / "letters.csv").write_text(TABLE)
    with pytest.raises(InputError, match="need a model to draw their images"):
        concepts.data_of(arguments(f"--concepts={tmp_path / 'letters.csv'}"))


def test_data_of_some_of_a_models_classes_use_it_for_these_alone(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = ready(str(folder / "dit"), "auto", tiny_models.dataset(), Evaluation())
    diffusion = Diffusion.load(source.address)
    assert (diffusion.class_names, diffusion.condition.stated()) == (("a", "b", "c"), {"labels": [2, 3, 1, 4]})
    assert "the model's other 1 classes have no images in data = tiny" in capsys.readouterr().out
