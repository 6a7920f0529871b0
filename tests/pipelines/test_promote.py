"""An alias points only to a version whose evidence passed, and what was done with it can be read and taken back."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from pipelines import promote as promote_module
from pipelines import tracking
from pipelines.cli.parser import main
from pipelines.promote import promote
from pipelines.registry import aliases, attachments, gates, model_versions, orphans, registration
from pipelines.rollback import rollback
from safemax import metric_keys as keys
from safemax.diffusion.model import Diffusion
from safemax.errors import InputError
from tests.support import tiny_models
from tests.support.registered_versions import NAME, attacked, register

pytestmark = pytest.mark.usefixtures("little_code")
MODEL = f"--model={NAME}"
UNMEASURED = "--remeasure=false"  # the evidence of these versions is invented; test_remeasurement.py measures again


def champion(name: str = NAME) -> str | None:
    return model_versions.aliased_number(name, "champion")


def administrative_runs(client: MlflowClient) -> list[Run]:
    experiment = client.get_experiment_by_name(tracking.ADMINISTRATION)
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id]))


def artifact(client: MlflowClient, run: Run, name: str) -> Any:
    return json.loads(Path(client.download_artifacts(run.info.run_id, name)).read_text())


def test_an_honest_correction_becomes_the_champion_with_its_record(
    mlflow_store: MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    register(mlflow_store, alias="candidate")
    promote([MODEL, UNMEASURED, "--why=the first one"])
    assert champion() == "1"
    printed = capsys.readouterr().out
    assert "recognised, a" in printed
    assert "champion of tiny-ddpm: none -> 1" in printed
    (run,) = administrative_runs(mlflow_store)
    assert (run.info.status, run.data.tags["kind"]) == ("FINISHED", "promotion")
    (record,) = aliases.recorded_moves(NAME, "champion")
    whole = artifact(mlflow_store, run, "move.json")
    assert {"model": NAME, "alias": "champion", **record}.items() <= whole.items()
    assert (record["from"], record["to"], record["why"], record["run"]) == (None, "1", "the first one", run.info.run_id)
    assert "recognised, a 0.76 % or less, <= 5 %: pass" in whole["gates"]
    assert "measured again no: remeasure=false, -: off" in whole["gates"]
    assert run.data.params["promote.remeasure"] == "False"
    assert "verdict" in artifact(mlflow_store, run, "gates.json")["columns"]


REFUSED: list[dict[str, Any]] = [
    {"forget_recognised": 30.0, "forget_recognised_high": 34.1},
    {"retain_accuracy": 31.0, "retain_fid_judge": 160.0},
    {"weights": "of another model"},
    {"judges_recall": 50.0},
]


def test_a_refusal_ends_with_status_1_and_leaves_the_alias(
    mlflow_store: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(mlflow_store, alias="champion")
    for number, changes in enumerate(REFUSED, start=2):
        register(mlflow_store, number, **changes)
        monkeypatch.setattr(sys, "argv", ["promote", MODEL, f"--version={number}"])
        with pytest.raises(SystemExit) as end:
            main(promote)
        assert end.value.code == 1
        assert champion() == "1"
        assert aliases.recorded_moves(NAME, "champion") == []
        run = administrative_runs(mlflow_store)[0]
        assert run.info.status == "FAILED"
        assert f"models:/tiny-ddpm/{number} is refused by: " in run.data.tags["failure"]
        assert "FAIL" in run.data.tags["mlflow.note.content"]


def test_the_base_cannot_become_the_champion(mlflow_store: MlflowClient) -> None:
    run_id = mlflow_store.create_run("0").info.run_id
    diffusion = tiny_models.diffusion()
    facts = {"forgotten": [], "metrics": {keys.RUNTIME_MINUTES: 1.0}, "model_digest": diffusion.digest()}
    registration.register(diffusion, NAME, run_id=run_id, evidence=facts, tags={}, description="", alias="base")
    with pytest.raises(InputError, match="refused by: .*classes forgotten"):
        promote([MODEL, UNMEASURED, "--version=base"])


def test_a_version_with_one_flipped_bit_cannot_become_the_champion(mlflow_store: MlflowClient) -> None:
    register(mlflow_store, alias="candidate")
    (model,) = mlflow_store.search_logged_models(["0"])
    weights = next(Path(model.artifact_location.removeprefix("file://")).rglob("*.safetensors"))
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(InputError, match="has changed since"):
        promote([MODEL, UNMEASURED])
    assert champion() is None


def test_evidence_that_was_edited_in_the_registry_convinces_nobody(mlflow_store: MlflowClient) -> None:
    register(mlflow_store, forget_recognised_high=60.0)
    mlflow_store.set_model_version_tag(NAME, "1", keys.RECOGNISED + keys.HIGH, "0")
    with pytest.raises(InputError, match="recognised, a"):
        promote([MODEL, UNMEASURED, "--version=1"])


def test_a_dry_run_shows_the_gates_and_changes_nothing(
    mlflow_store: MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    register(mlflow_store, alias="candidate")
    promote([MODEL, UNMEASURED, "--dry-run=true"])
    printed = capsys.readouterr().out
    assert "recognised, a" in printed
    assert "dry run: models:/tiny-ddpm/1 would become champion of tiny-ddpm in place of none" in printed
    assert champion() is None


@pytest.mark.parametrize("entry", [promote, rollback])
def test_expect_refuses_where_the_alias_points_elsewhere(mlflow_store: MlflowClient, entry: Any) -> None:
    register(mlflow_store, alias="champion")
    register(mlflow_store, 1, alias="candidate")
    with pytest.raises(InputError, match="expect = 2, but champion points to 1"):
        entry([MODEL, "--expect=2"])
    assert champion() == "1"


def test_expect_lets_pass_where_the_alias_points_there(mlflow_store: MlflowClient) -> None:
    register(mlflow_store, alias="candidate")
    promote([MODEL, UNMEASURED, "--expect=none"])
    register(mlflow_store, 1, alias="candidate")
    promote([MODEL, UNMEASURED, "--expect=1"])
    assert champion() == "2"


def test_an_alias_that_moves_while_the_gates_are_applied_stays_where_it_went(
    mlflow_store: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(2):
        register(mlflow_store, seed)
    real = gates.judge

    def slow(*given: Any) -> list[gates.Gate]:
        mlflow_store.set_registered_model_alias(NAME, "champion", "2")
        return real(*given)

    monkeypatch.setattr(promote_module.gates, "judge", slow)
    with pytest.raises(InputError, match="was moved to 2 meanwhile"):
        promote([MODEL, UNMEASURED, "--version=1"])
    assert champion() == "2"


def test_promoting_the_champion_again_changes_nothing(mlflow_store: MlflowClient) -> None:
    register(mlflow_store, alias="candidate")
    promote([MODEL, UNMEASURED])
    promote([MODEL, UNMEASURED])
    assert len(aliases.recorded_moves(NAME, "champion")) == 1


def test_promoting_a_version_that_the_alias_was_set_to_by_hand_records_this_promotion(
    mlflow_store: MlflowClient,
) -> None:
    for seed in range(3):
        register(mlflow_store, seed)
    promote([MODEL, UNMEASURED, "--version=1"])
    mlflow_store.set_registered_model_alias(NAME, "champion", "2")
    promote([MODEL, UNMEASURED, "--version=2", "--why=looked at"])
    newest = artifact(mlflow_store, administrative_runs(mlflow_store)[0], "move.json")
    assert (newest["from"], newest["to"], newest["why"]) == ("2", "2", "looked at")
    promote([MODEL, UNMEASURED, "--version=3"])
    rollback([MODEL])
    assert champion() == "2", "it passed the gates, whoever had set the alias"
    rollback([MODEL])
    assert champion() == "1"


def test_promoting_again_after_a_promotion_that_died_writes_the_record_that_set_the_alias(
    mlflow_store: MlflowClient,
) -> None:
    for seed in range(2):
        register(mlflow_store, seed)
    promote([MODEL, UNMEASURED, "--version=1", "--why=the first"])
    dead = json.dumps(aliases.new_move(aliases.PROMOTE, "1", "2", why="died", run_id="of a dead run"))
    mlflow_store.set_registered_model_tag(NAME, "move.champion.00002.dead", dead)
    promote([MODEL, UNMEASURED, "--version=1", "--why=again"])
    again = artifact(mlflow_store, administrative_runs(mlflow_store)[0], "move.json")
    assert (again["from"], again["to"], again["why"]) == (None, "1", "the first")


def test_a_worse_model_than_the_champion_is_refused_and_a_gate_file_may_let_it_pass(
    mlflow_store: MlflowClient, tmp_path: Path
) -> None:
    register(mlflow_store, retain_fid_judge=7.5)
    promote([MODEL, UNMEASURED, "--version=1"])
    register(mlflow_store, 1, retain_fid_judge=9.8)  # 1.31 times 7.5, 1.32 times the base's 7.4
    with pytest.raises(InputError, match="refused by: FID to champion's;"):
        promote([MODEL, UNMEASURED, "--version=2"])
    (tmp_path / "mine.yaml").write_text("fid_ratio_to_champion: 1.4\n")
    promote([MODEL, UNMEASURED, "--version=2", f"--gates={tmp_path / 'mine.yaml'}"])
    assert champion() == "2"


def test_a_chained_correction_is_compared_with_the_champion_that_it_started_from(mlflow_store: MlflowClient) -> None:
    register(mlflow_store)
    promote([MODEL, UNMEASURED, "--version=1"])
    parent = tiny_models.diffusion().digest()
    register(mlflow_store, 1, forget="b", earlier=("a",), parent=parent)
    promote([MODEL, UNMEASURED, "--version=2"])
    register(mlflow_store, 2, forget="c")  # from the base: it knows a and b
    with pytest.raises(InputError, match="classes forgotten"):
        promote([MODEL, UNMEASURED, "--version=3"])


def test_attacks_are_read_from_the_run_that_made_them_on_this_very_version(
    mlflow_store: MlflowClient, tmp_path: Path
) -> None:
    register(mlflow_store)
    register(mlflow_store, 1)
    strict, found = tmp_path / "strict.yaml", tmp_path / "attacks.json"
    strict.write_text("evidence: panel+attacks\n")
    attack = mlflow_store.create_run("0").info.run_id
    asked = [MODEL, UNMEASURED, "--version=1", f"--gates={strict}"]
    with pytest.raises(InputError, match="refused by: attacks made; worst attack"):
        promote(asked)
    found.write_text(json.dumps(attacked(8.0)))
    attachments.attach(f"models:/{NAME}/1", "attacks", attack, found)
    promote(asked)
    stolen = mlflow_store.get_model_version(NAME, "1").tags["evidence.attacks"]
    mlflow_store.set_model_version_tag(NAME, "2", "evidence.attacks", stolen)
    with pytest.raises(InputError, match="measured on files other than"):
        promote([MODEL, UNMEASURED, "--version=2", f"--gates={strict}"])
    found.write_text(json.dumps(attacked(0.0)))
    mlflow_store.log_artifact(attack, str(found), "evidence")
    with pytest.raises(InputError, match="has changed since it was recorded"):
        promote(asked)


def test_a_version_is_promoted_in_another_registered_model_with_its_evidence(mlflow_store: MlflowClient) -> None:
    register(mlflow_store, alias="candidate")
    asked = [MODEL, UNMEASURED, "--to=prod-ddpm"]
    promote(asked)
    promote(asked)
    assert (champion("prod-ddpm"), champion()) == ("1", None)
    assert len(mlflow_store.search_model_versions("name='prod-ddpm'")) == 1
    assert model_versions.evidence("models:/prod-ddpm@champion") == model_versions.evidence(f"models:/{NAME}/1")
    assert Diffusion.load(model_versions.resolve("models:/prod-ddpm/1")).digest() == tiny_models.diffusion().digest()


@pytest.mark.parametrize("shape", ["1x16x16", "3x8x8"])
def test_a_version_does_not_join_versions_whose_images_have_another_shape(
    mlflow_store: MlflowClient, shape: str
) -> None:
    register(mlflow_store)
    register(mlflow_store, 1, name="other-ddpm", alias="champion")
    mlflow_store.set_model_version_tag("other-ddpm", "1", registration.SHAPE, shape)
    words = f"to = other-ddpm is not allowed: its version 1 has images of {shape}, models:/{NAME}/1 of 1x8x8"
    with pytest.raises(InputError, match=words):
        promote([MODEL, UNMEASURED, "--version=1", "--to=other-ddpm"])
    assert champion("other-ddpm") == "1"
    assert len(mlflow_store.search_model_versions("name='other-ddpm'")) == 1
    assert mlflow_store.get_experiment_by_name(tracking.ADMINISTRATION) is None


def test_a_copy_outlives_its_source_and_the_removal_of_orphans(mlflow_store: MlflowClient) -> None:
    register(mlflow_store)
    promote([MODEL, UNMEASURED, "--version=1", "--to=prod-ddpm"])
    mlflow_store.delete_model_version(NAME, "1")
    orphans.remove_orphans(NAME)
    assert len(mlflow_store.search_logged_models(["0"])) == 1
    model_versions.resolve("models:/prod-ddpm@champion")


def test_a_copy_is_judged_beside_the_champion_of_the_place_it_goes_to(mlflow_store: MlflowClient) -> None:
    register(mlflow_store, retain_fid_judge=7.5)
    register(mlflow_store, 1, retain_fid_judge=9.8)
    promote([MODEL, UNMEASURED, "--version=1", "--to=prod-ddpm"])
    with pytest.raises(InputError, match="FID to champion's"):
        promote([MODEL, UNMEASURED, "--version=2", "--to=prod-ddpm"])
    assert len(mlflow_store.search_model_versions("name='prod-ddpm'")) == 1


def test_a_rollback_restores_the_champion_before_and_says_which_classes_come_back(
    mlflow_store: MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    register(mlflow_store)
    register(mlflow_store, 1, forget="b", earlier=("a",), parent=tiny_models.diffusion().digest())
    for number in "12":
        promote([MODEL, UNMEASURED, f"--version={number}"])
    rollback([MODEL, "--dry-run=true"])
    assert champion() == "2"
    rollback([MODEL, "--why=blurred", "--expect=2"])
    assert champion() == "1"
    assert "warning: version 1 has not forgotten b" in capsys.readouterr().out
    last = aliases.recorded_moves(NAME, "champion")[-1]
    assert (last["kind"], last["from"], last["to"], last["why"]) == ("rollback", "2", "1", "blurred")
    with pytest.raises(InputError, match="has no recorded version before 1"):
        rollback([MODEL])


def test_a_rollback_leaves_a_damaged_champion_but_goes_to_no_damaged_version(mlflow_store: MlflowClient) -> None:
    for seed in range(3):
        register(mlflow_store, seed)
        promote([MODEL, UNMEASURED, f"--version={seed + 1}"])
    for number in ("3", "1"):
        source = str(mlflow_store.get_model_version(NAME, number).source).rpartition("/")[2]
        place = Path(mlflow_store.get_logged_model(source).artifact_location.removeprefix("file://"))
        (place / "artifacts" / "evidence.json").unlink()
    rollback([MODEL])
    assert champion() == "2"
    with pytest.raises(InputError, match="evidence.json is missing"):
        rollback([MODEL])
    assert champion() == "2"


def test_a_rollback_of_an_alias_that_points_nowhere_is_refused(mlflow_store: MlflowClient) -> None:
    with pytest.raises(InputError, match="unknown registered model 'tiny-ddpm'; known: none"):
        rollback([MODEL])
    register(mlflow_store)
    with pytest.raises(InputError, match="champion of tiny-ddpm points to no version"):
        rollback([MODEL])


BAD = [
    ("--alias=latest", "alias = 'latest' is not allowed"),
    ("--alias=v3", "alias = 'v3' is not allowed"),
    ("--alias=a/b", "letters, digits"),
    ("--expect=two", "a version's number, none, or any"),
    (f"--why={'x' * 1001}", "why has 1001 characters"),
    ("--version=9", "unknown version of tiny-ddpm '9'; known: 1"),
    ("--version=../1", "an address is models:/NAME/VERSION"),
    ("--model=nobody", "unknown registered model 'nobody'"),
    ("--gates=nowhere.yaml", "gates = nowhere.yaml cannot be read"),
]


def test_bad_input_is_one_line_and_opens_no_run(mlflow_store: MlflowClient) -> None:
    register(mlflow_store)
    for argument, words in BAD:
        given = {"--model": NAME, "--version": "1"} | dict([argument.split("=", 1)])
        with pytest.raises(InputError, match=words) as refusal:
            promote([f"{key}={value}" for key, value in given.items()])
        assert "\n" not in str(refusal.value)
    assert mlflow_store.get_experiment_by_name(tracking.ADMINISTRATION) is None


@pytest.mark.parametrize(
    ("parameters", "asked"),
    [
        (None, ("a", "b", "c")),
        ({"eval.retain_classes": "auto"}, ("a", "b", "c")),
        ({"eval.retain_classes": "b"}, ("a", "b", "c")),  # or a lost c would pass
        ({"eval.retain_classes": "b,c"}, ("b", "c")),
    ],
)
def test_fewer_retained_classes_than_there_are_spare_no_class_the_gates(
    parameters: dict[str, str] | None, asked: tuple[str, ...]
) -> None:
    facts = {"forgotten": ["a"], "parameters": parameters}
    assert promote_module._asked(tiny_models.diffusion(), facts) == asked
