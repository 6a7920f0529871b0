"""A plan says what a command would do and how long that takes here, and does nothing."""

from __future__ import annotations

import json
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from pipelines.cli.console import carry_out
from pipelines.cli.index import commands
from pipelines.demo import demo
from pipelines.planning.plan import Plan, Stage, alike, duration, size
from pipelines.planning.rates import Rates
from pipelines.planning.stages import Planner
from safemax.errors import InputError
from safemax.judges.config import JudgeConfig
from safemax.judges.load import judges
from safemax.reports.numbers import duration as precise
from tests.pipelines.test_end_to_end import EVALUATION, SMALL
from tests.support import tiny_models

LONG = ("demo", "pretrain", "unlearn", "evaluate", "attack", "compare", "hpo", "contest")


@pytest.mark.parametrize(
    ("minutes", "text"), [(0.02, "1 s"), (1.4, "84 s"), (4.2, "4 min"), (120, "2 h"), (4320, "3 days")]
)
def test_a_duration_reads_as_a_person_says_it(minutes: float, text: str) -> None:
    assert duration(minutes) == text


def test_a_size_reads_as_a_person_says_it() -> None:
    assert (size(0.2), size(12.3), size(1500)) == ("1 MB", "12 MB", "1.5 GB")


def test_minutes_follow_from_rates_and_what_is_kept_takes_none() -> None:
    assert Rates(0.001, 0.01).minutes(6000, 600) == pytest.approx(0.2)
    one, two = Stage("draw", "draw 5 images", 2.0, 3.0), Stage("draw", "draw 5 images", 2.0, 3.0, reused=True)
    both = alike([one, two], "classes", 2)
    assert (both.takes, both.megabytes, both.does) == (1.0, 3.0, "2 classes, 1 kept: draw 5 images")
    assert alike([two, two], "classes").reused
    plan = Plan("demo", [one, two], "a run.", "Measured.")
    assert plan.minutes == 2.0
    assert "draw      kept  draw 5 images" in plan.text()


def test_every_long_command_can_be_planned() -> None:
    assert [name for name, each in commands().items() if "plan" in each.sections and not each.fixed] == list(LONG)


def test_a_plan_of_the_demo_leaves_nothing_but_rates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SAFEMAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    demo([*SMALL, "--plan=true"])
    text = capsys.readouterr().out
    assert text.startswith("demo: digits-ddpm forgets 0: in all about ")
    for line in (
        "pretrain",
        "judge 1 of 2",
        "judge 2 of 2",
        "safemax",
        "measure base",
        "measure corrected",
        "register",
    ):
        assert f"\n  {line} " in text
    assert {path.parent.name for path in tmp_path.rglob("*") if path.is_file()} == {"rates"}
    with pytest.raises(InputError, match="no version with the alias base"):
        carry_out(commands()["unlearn"], "", ["--plan=true"])
    assert not (tmp_path / "mlflow.db").exists()


def test_what_was_done_before_is_kept_and_no_plan_opens_a_run(
    mlflow_store: MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    demo(SMALL)
    said = capsys.readouterr().out
    assert said.startswith("demo: digits-ddpm forgets 0: in all about ")
    _compares_planned_minutes_with_real_ones(mlflow_store, said)
    before = _runs(mlflow_store)
    plans = {
        "demo": SMALL,
        "salun": ["--forget=1", "--steps=2", "--batch-size=8", "--mask_batches=1", *EVALUATION],
        "evaluate": [*EVALUATION, "--gold=train"],
        "attack": ["--attacks=partial", "--attack_samples=10", "--judge-steps=5", "--reject-judges=1"],
        "compare": ["--methods=safemax", "--classes=0,1", "--steps=2", "--batch-size=8", *EVALUATION],
        "hpo": ["--forget=0", "--trials=3", "--batch-size=8", *EVALUATION],
        "contest": ["--methods=safemax,salun", "--tune=3", "--rows=64", "--base_steps=2", *EVALUATION],
    }
    text = {}
    for name, words in plans.items():
        carry_out(commands()[name], "", [*words, "--plan=true"])
        text[name] = " ".join(capsys.readouterr().out.split())
    assert "pretrain kept" in text["demo"]
    assert "judge 1 of 2 kept" in text["demo"]
    assert "measure base kept" in text["demo"]
    assert "prepare salun: 0 rows drawn, 4 rows with gradients" in text["salun"]
    assert "measure model kept" in text["evaluate"]
    assert "gold 0 s train a model that never sees the classes: 3 steps of 8 rows measure gold" in text["evaluate"]
    assert "attack the model, its base, gold" in text["attack"]
    assert "2 classes x 1 seed: unlearn: 2 steps of 8 rows" in text["compare"]
    assert "3 trials: unlearn: " in text["hpo"]
    assert "2 bases, 0 kept: train the base" in text["contest"]
    assert "3 gold models, 0 kept: train a model that never sees the classes" in text["contest"]
    assert "salun: search" in text["contest"]
    assert "6 corrections, measured 2 times each" in text["contest"]
    assert _runs(mlflow_store) == before


def _compares_planned_minutes_with_real_ones(store: MlflowClient, said: str) -> None:
    experiment = store.get_experiment_by_name("digits-ddpm")
    assert experiment is not None
    (run,) = store.search_runs([experiment.experiment_id], "tags.kind = 'correction'")
    minutes = mlflow.artifacts.load_dict(f"{run.info.artifact_uri}/environment.json")["minutes"]
    seconds = (run.info.end_time - run.info.start_time) / 1000
    assert minutes["real"] * 60 == pytest.approx(seconds, abs=5)
    assert 0 < minutes["planned"] < 60
    assert said.endswith(f"planned {precise(minutes['planned'])}, took {precise(minutes['real'])}\n")


def _runs(store: MlflowClient) -> list[str]:
    return [each.info.run_id for each in store.search_runs([each.experiment_id for each in store.search_experiments()])]


def test_a_rate_is_measured_once_and_says_of_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.planning import rates

    monkeypatch.setenv("SAFEMAX_CACHE", str(tmp_path))
    facts = {"network": "x", **rates.machine()}
    assert rates.kept(facts, lambda: {"step": 2.0}) == rates.kept(facts, lambda: {"step": 3.0}) == {"step": 2.0}
    (path,) = (tmp_path / "rates").glob("*.json")
    assert json.loads(path.read_text())["measured"]["threads"] > 0


def test_none_heads_are_planned_until_they_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFEMAX_CACHE", str(tmp_path))
    dataset, config = tiny_models.dataset(), JudgeConfig(judge="small", reject_judge="none_head", judge_steps=3)
    planner = Planner(tiny_models.diffusion(), dataset, (0,), Rates(0.0, 0.0))
    *_, heads = planner.judges(config)
    assert (heads.name, heads.reused) == ("none heads", False)
    assert heads.minutes > 0
    assert "heads that may answer none of these, on small: 3 batches each" in heads.does
    judges(dataset, config, progress=False)
    assert [each.reused for each in planner.judges(config)] == [True, True]
