"""A file of parameters is read as if its lines stood on the command line; a run keeps the file that repeats it."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipelines.cli import config_file
from pipelines.cli.console import carry_out
from pipelines.cli.index import commands
from pipelines.cli.parameters import UsageError
from pipelines.pretrain import pretrain
from pipelines.registry import model_versions
from safemax.diffusion.model import Diffusion


def written(folder: Path, text: str) -> str:
    path = folder / "wanted.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("line", "option"),
    [
        ("lr: 1e-5", ("lr", "1e-5")),
        ("retain-weight: 012", ("retain_weight", "012")),
        ("flip: no", ("flip", "no")),
        ("forget: [3, 5]", ("forget", "3,5")),
        ("why: '0 must go: now'", ("why", "0 must go: now")),
        ("overrides: ''", ("overrides", "")),
    ],
)
def test_a_value_is_the_text_that_it_would_be_on_the_command_line(
    line: str, option: tuple[str, str], tmp_path: Path
) -> None:
    assert config_file.read(written(tmp_path, line)) == [option]


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        ("", "has no parameters; write a line NAME: VALUE for each"),
        ("- steps", "has no parameters; write a line NAME: VALUE for each"),
        ("steps: {value: 3}", "is not allowed in line 1: steps is one value, or a list of values"),
        ("steps: [3", "is not YAML: while parsing a flow sequence"),
    ],
)
def test_what_is_no_file_of_parameters_is_refused(text: str, refusal: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^config = .*wanted\.yaml ") as refused:
        config_file.read(written(tmp_path, text))
    assert refusal in str(refused.value)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="none.yaml cannot be read: No such file"):
        config_file.read(str(tmp_path / "none.yaml"))


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        ("stps: 3", r"unknown parameter 'stps' .did you mean 'steps'.*known: preset, data, size"),
        ("steps: many", "steps = many is not allowed; steps is a whole number"),
        ("steps: 3\nsteps: 4", "steps is given twice"),
    ],
)
def test_the_names_and_values_of_a_file_are_checked_as_those_of_the_command_line(
    text: str, refusal: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=f"^config = .*wanted.yaml: {refusal}"):
        carry_out(commands()["pretrain"], "", [f"--config={written(tmp_path, text)}"])


def test_what_is_given_wins_over_the_file_and_the_file_over_mlprojects_auto(tmp_path: Path) -> None:
    from_file = config_file.read(written(tmp_path, "steps: 3\nlr: 1e-3\nseed: 7"))
    merged = config_file.merge([("steps", "5"), ("lr", "auto")], from_file, "auto")
    assert merged == [("steps", "5"), ("lr", "1e-3"), ("seed", "7")]
    assert config_file.merge([("cluster", "auto")], from_file, "auto")[0] == ("cluster", "auto")


def test_a_run_is_repeated_from_the_file_that_it_keeps(mlflow_store: MlflowClient, tmp_path: Path) -> None:
    pretrain(["--steps=2", "--batch-size=8", "--seed=3"])
    (experiment,) = [each for each in mlflow_store.search_experiments() if each.name == "digits-ddpm"]
    (first,) = mlflow_store.search_runs([experiment.experiment_id])
    path = mlflow_store.download_artifacts(first.info.run_id, "config.yaml", str(tmp_path))
    carry_out(commands()["pretrain"], "", [f"--config={path}"])
    one, two = (Diffusion.load(model_versions.resolve(f"models:/digits-ddpm/{number}")) for number in (1, 2))
    assert one.digest() == two.digest()
