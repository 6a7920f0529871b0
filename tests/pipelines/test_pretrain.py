from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from pipelines.cli.parameters import UsageError
from pipelines.pretrain import pretrain
from tests.support import tiny_models


@pytest.mark.usefixtures("mlflow_store")
def test_a_preset_sets_the_recipe_and_what_is_given_wins(capsys: pytest.CaptureFixture[str]) -> None:
    tiny_models.write_images(Path("tiny"))
    words = ["--data=tiny", "--name=tiny-ddpm", "--preset=gpu", "--batch_size=4", "--steps=2", "--device=cpu"]
    pretrain([*words, "--plan=true"])
    assert "2 steps of 4 rows" in capsys.readouterr().out
    pretrain(words)
    run = _newest()
    recorded = {key: run.data.params[f"train.{key}"] for key in ("steps", "lr", "batch_size", "ema", "precision")}
    assert recorded == {"steps": "2", "lr": "0.0004", "batch_size": "4", "ema": "0.9995", "precision": "auto"}
    assert run.data.params["model.min_snr_gamma"] == "5.0"


@pytest.mark.usefixtures("mlflow_store")
def test_minutes_win_over_the_steps_of_a_preset_and_nothing_says_that_so_many_steps_were_taken(
    capsys: pytest.CaptureFixture[str],
) -> None:
    tiny_models.write_images(Path("tiny"))
    words = ["--data=tiny", "--name=tiny-ddpm", "--preset=gpu", "--batch_size=4", "--minutes=0.001", "--device=cpu"]
    pretrain(words)
    run = _newest()
    assert run.data.params["train.minutes"] == "0.001"
    assert "train.steps" not in run.data.params
    printed, note = capsys.readouterr().out, run.data.tags["mlflow.note.content"]
    assert "8000" not in printed + note
    assert "of steps of 4 rows" in printed


def test_another_preset_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown preset 'gqu' .did you mean 'gpu'"):
        pretrain(["--preset=gqu"])


def _newest() -> Run:
    client = MlflowClient()
    experiment = client.get_experiment_by_name("tiny-ddpm")
    assert experiment is not None
    return client.search_runs([experiment.experiment_id])[0]
