"""The whole path on a server as a team runs it: over HTTP, with PostgreSQL and accounts, and with the server killed on the way."""

from __future__ import annotations

import configparser
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
import requests
import yaml
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.server import get_app_client

from pipelines import demo as demo_module
from pipelines import tracking
from pipelines import unlearn as unlearn_module
from pipelines.promote import promote
from pipelines.registry import model_versions
from pipelines.rollback import rollback
from pipelines.tracking import runs
from pipelines.tracking.metric_journal import MetricJournal
from pipelines.versions import versions
from safemax.errors import InputError
from tests.pipelines.test_end_to_end import EVALUATION, SMALL
from tests.support.mlflow_servers import Server, postgres

ROOT = Path(__file__).parents[3]
ADMIN = ("admin", "a password of 12 characters or more")
NAME = "digits-ddpm"
# The models here have learned nothing; what the gates refuse is tested where it is cheaper.
OPEN = {
    "verdict": None,
    "judge_recall": None,
    "base_recognised": None,
    "recognised_high": None,
    "retained_accuracy": None,
    "class_accuracy_loss": None,
    **dict.fromkeys(
        ("accuracy_loss_to_base", "accuracy_loss_to_champion", "fid_ratio_to_base", "fid_ratio_to_champion")
    ),
}


def compose() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "compose.yaml").read_text())


def team_server(folder: Path) -> Server:
    """Return the server of compose.yaml: its command and environment, with other places and passwords."""
    service = compose()["services"]["mlflow"]
    config = configparser.ConfigParser()
    config.read(ROOT / "docs" / "basic_auth.ini")
    config["mlflow"]["database_uri"] = f"sqlite:///{folder / 'accounts.db'}"
    with (folder / "basic_auth.ini").open("w") as file:
        config.write(file)
    stated = {
        "MLFLOW_BACKEND_STORE_URI": postgres(),
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "basic_auth.ini"),
        "MLFLOW_AUTH_ADMIN_PASSWORD": ADMIN[1],
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "of this test",
    }
    assert service["command"][:2] == ["mlflow", "server"]
    moved = ("--host", "--port", "--artifacts-destination")
    words = [word for word in service["command"][2:] if not word.startswith(moved)]
    words = [word.replace("${MLFLOW_HOSTS:-", "").replace("}", "") for word in words]
    return Server(folder, words, {**service["environment"], **stated})


def enter(server: Server, folder: Path, patch: pytest.MonkeyPatch) -> MlflowClient:
    patch.chdir(folder)
    patch.setenv("MLFLOW_TRACKING_URI", server.address)
    patch.setenv("MLFLOW_TRACKING_USERNAME", ADMIN[0])
    patch.setenv("MLFLOW_TRACKING_PASSWORD", ADMIN[1])
    patch.setattr("mlflow.tracking._tracking_service.utils._tracking_uri", None)
    patch.setattr("mlflow.tracking.fluent._active_experiment_id", None)
    patch.delenv("MLFLOW_RUN_ID", raising=False)
    patch.setenv("MLFLOW_EXPERIMENT_ID", "0")
    patch.delenv("MLFLOW_EXPERIMENT_ID")
    return MlflowClient()


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, MlflowClient]]:
    pytest.importorskip("flask_wtf", reason="needs MLflow's accounts: pip install 'mlflow[auth]'")
    folder = tmp_path_factory.mktemp("team")
    server = team_server(folder).start()
    with pytest.MonkeyPatch.context() as patch:
        yield server, enter(server, folder, patch)
    server.kill()


def test_the_compose_file_asks_for_every_secret_and_is_closed_to_the_network() -> None:
    services = compose()["services"]
    assert services["mlflow"]["ports"] == ["127.0.0.1:5000:5000"]
    assert "ports" not in services["database"]
    text = (ROOT / "compose.yaml").read_text()
    for secret in ("POSTGRES_PASSWORD", "MLFLOW_ADMIN_PASSWORD", "MLFLOW_SECRET_KEY"):
        assert f"${{{secret}:?" in text
        assert secret in (ROOT / "docs" / "server.md").read_text()
    pinned = (ROOT / "requirements.txt").read_text()
    for package in ("mlflow", "psycopg[binary]"):
        version = next(line.partition("==")[2] for line in pinned.splitlines() if line.startswith(f"{package}=="))
        assert f"=={version}" in services["mlflow"]["build"]["dockerfile_inline"]


@pytest.mark.slow
def test_nobody_reads_a_team_server_without_an_account(team: tuple[Server, MlflowClient]) -> None:
    server, _ = team
    search = f"{server.address}/api/2.0/mlflow/experiments/search"
    assert requests.post(search, json={"max_results": 9}, timeout=60).status_code == 401
    assert requests.post(search, json={"max_results": 9}, auth=("admin", "password1234"), timeout=60).status_code == 401
    assert requests.post(search, json={"max_results": 9}, auth=ADMIN, timeout=60).status_code == 200


@pytest.mark.slow
def test_an_account_reads_everything_and_moves_no_alias_before_it_is_granted(
    team: tuple[Server, MlflowClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, client = team
    client.create_registered_model("theirs")
    model = client.create_logged_model("0", "theirs")
    client.create_model_version("theirs", f"models:/{model.model_id}", model_id=model.model_id)
    accounts = get_app_client("basic-auth", tracking_uri=server.address)
    accounts.create_user("ana", "a password of 12 characters or more")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ana")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "a password of 12 characters or more")
    assert client.get_registered_model("theirs").name == "theirs"
    with pytest.raises(MlflowException, match="Permission denied"):
        client.set_registered_model_alias("theirs", "champion", "1")
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_USERNAME", ADMIN[0])
        patch.setenv("MLFLOW_TRACKING_PASSWORD", ADMIN[1])
        accounts.grant_user_permission("ana", "registered_model", "theirs", "EDIT")
    client.set_registered_model_alias("theirs", "champion", "1")


@pytest.mark.slow
def test_the_whole_path_from_data_to_a_served_champion_runs_on_a_team_server(
    team: tuple[Server, MlflowClient], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, client = team
    demo_module.demo(SMALL)
    demo_module.demo([*SMALL, "--seed=1"])
    (tmp_path / "open.yaml").write_text(json.dumps(OPEN))
    for number in "23":
        promote([f"--version={number}", "--remeasure=false", f"--gates={tmp_path / 'open.yaml'}", "--why=a test"])
    rollback(["--expect=3"])
    versions(["--where=method=safemax"])
    assert model_versions.aliased_number(NAME, "champion") == "2"
    assert "champion" in capsys.readouterr().out
    moves = [json.loads(value) for key, value in client.get_registered_model(NAME).tags.items() if key[:5] == "move."]
    assert {(move["kind"], move["who"]) for move in moves} == {("promote", "admin"), ("rollback", "admin")}
    model = mlflow.pyfunc.load_model(f"models:/{NAME}@champion")
    (record,) = model.predict(pd.DataFrame({"class_label": ["3"]}), params={"steps": 2})
    assert record["class_label"] == "3"
    with pytest.raises(MlflowException, match="class_label = '0' was forgotten"):
        model.predict(pd.DataFrame({"class_label": ["0"]}))


def outage(server: Server, client: MlflowClient, experiment: str, seconds: float) -> threading.Thread:
    """Return a thread that kills the server when a run of an experiment has told its first steps, and brings it back."""

    def work() -> None:
        while not any("loss/forget" in run.data.metrics for run in running(client, experiment)):
            time.sleep(0.2)
        server.kill()
        time.sleep(seconds)
        server.start()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def running(client: MlflowClient, experiment: str) -> list[Any]:
    found = client.get_experiment_by_name(experiment)
    return list(client.search_runs([found.experiment_id], "attributes.status = 'RUNNING'")) if found else []


@pytest.mark.slow
def test_training_goes_on_while_the_team_server_is_dead_and_every_metric_arrives_once(
    team: tuple[Server, MlflowClient], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server, client = team
    if model_versions.find(NAME, "base") is None:
        demo_module.demo(SMALL)
    monkeypatch.setattr(runs, "FLUSH_SECONDS", 1.0)
    command = ["--forget=5", "--steps=600", "--batch-size=64", "--previews=8", "--name=digits-ddpm", *EVALUATION]
    unlearn_module.unlearn(command)
    calm = model_versions.evidence(f"models:/{NAME}@candidate")
    thread = outage(server, client, NAME, 5.0)
    unlearn_module.unlearn(command)
    thread.join(60)
    assert "tracking store unavailable" in caplog.text
    disturbed = client.get_model_version_by_alias(NAME, "candidate")
    assert disturbed.run_id is not None
    assert model_versions.evidence(f"models:/{NAME}@candidate")["model_digest"] == calm["model_digest"]
    assert client.get_run(disturbed.run_id).info.status == "FINISHED"
    for key in ("loss/forget", "loss/retain"):
        history = client.get_metric_history(disturbed.run_id, key)
        assert [each.step for each in history] == list(range(10, 601, 10))
    assert not list(Path(os.environ.get("SAFEMAX_CACHE", ".safemax")).glob("checkpoints/*/*"))


@pytest.fixture
def small_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Server, MlflowClient]]:
    """A server with SQLite and no accounts: what starts fastest."""
    server = Server(tmp_path).start()
    yield server, enter(server, tmp_path, monkeypatch)
    server.kill()


def test_a_server_that_is_killed_costs_no_metric_and_a_run_that_ends_without_it_says_so(
    small_server: tuple[Server, MlflowClient], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server, client = small_server
    monkeypatch.setattr(runs, "FLUSH_SECONDS", 0.0)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with tracking.run("job", experiment="tiny-ddpm", params={}, tags={}) as run:
        run.start_journal(tmp_path / "job")
        run.log({"loss/a": 1.0}, 1)
        server.kill()
        run.log({"loss/a": 2.0}, 2)
        with run.tolerate_outage():
            run.json({}, "lost")
        server.start()
        run.log({"loss/a": 3.0}, 3)
    assert [each.step for each in client.get_metric_history(run.id, "loss/a")] == [1, 2, 3]
    with pytest.raises(InputError, match="does not answer; the same command resumes"):
        _end_without(server, tmp_path)
    assert [each.step for each in MetricJournal(tmp_path / "other").read()] == [1, 2]


def _end_without(server: Server, folder: Path) -> None:
    with tracking.run("job", experiment="tiny-ddpm", params={}, tags={}) as run:
        run.start_journal(folder / "other")
        server.kill()
        for step in (1, 2):
            run.log({"loss/a": float(step)}, step)
