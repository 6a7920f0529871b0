"""A run says truthfully what happened, however it ended."""

from __future__ import annotations

import math
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
import requests
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.entities import ViewType
from mlflow.exceptions import MlflowException, RestException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED
from PIL import Image
from sqlalchemy.exc import OperationalError

from pipelines import tracking
from pipelines.tracking import runs
from safemax import metric_keys as keys
from safemax.errors import InputError, Stopped
from tests.support import tiny_models


def opened(**changes: Any) -> Any:
    given: dict[str, Any] = {"experiment": "tiny-ddpm", "params": {"method.lambda": 1e-5}, "tags": {"forget": "a"}}
    return tracking.run("safemax-tiny-forget0", **{**given, **changes})


def test_a_run_that_ends_is_finished_with_what_it_was_given(mlflow_store: MlflowClient) -> None:
    with opened(description="the *note*") as run:
        pass
    stored = mlflow_store.get_run(run.id)
    assert stored.info.status == "FINISHED"
    assert stored.info.run_name == "safemax-tiny-forget0"
    assert stored.data.params["method.lambda"] == "1e-05"
    assert stored.data.tags["forget"] == "a"
    assert stored.data.tags["mlflow.note.content"] == "the *note*"


def test_a_run_records_what_a_repetition_needs(mlflow_store: MlflowClient) -> None:
    with opened() as run:
        pass
    recorded = mlflow.artifacts.load_dict(f"runs:/{run.id}/environment.json")
    assert recorded["parameters"] == {"method.lambda": 1e-5}
    assert recorded["environment"]["torch"].startswith("2.")
    assert recorded["environment"]["threads"] >= 1
    assert recorded["environment"]["command"] == shlex.join(sys.orig_argv)


def test_a_run_shows_the_parameters_that_runs_are_compared_by_and_records_all(mlflow_store: MlflowClient) -> None:
    params = {f"method.knob{i}": i for i in range(20)}
    with opened(params=params, shown=["method.knob3", "method.unknown"]) as run:
        pass
    assert mlflow_store.get_run(run.id).data.params == {"method.knob3": "3"}
    assert mlflow.artifacts.load_dict(f"runs:/{run.id}/environment.json")["parameters"] == params
    with pytest.raises(ValueError, match="a run shows at most 12 parameters, not 20"), opened(params=params):
        pass


@pytest.mark.parametrize(
    ("error", "status"),
    [(Stopped("told to"), "KILLED"), (ValueError("broken"), "FAILED"), (KeyboardInterrupt(), "KILLED")],
)
def test_a_run_that_is_left_by_an_exception_ends_so_and_keeps_its_metrics(
    mlflow_store: MlflowClient, error: BaseException, status: str
) -> None:
    with pytest.raises(type(error)), opened() as run:  # noqa: PT012 - the exception passes through the run
        run.log({"loss/forget": 2.0}, 7)
        raise error
    stored = mlflow_store.get_run(run.id)
    assert stored.info.status == status
    assert stored.data.metrics == {"loss/forget": 2.0}


def test_a_failed_run_says_why(mlflow_store: MlflowClient) -> None:
    with pytest.raises(InputError), opened() as run:
        raise InputError("lambda = -1 is not allowed")
    assert mlflow_store.get_run(run.id).data.tags["failure"] == "InputError: lambda = -1 is not allowed"


def test_a_run_that_mlflow_run_opened_is_joined_and_renamed(
    mlflow_store: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = mlflow_store.create_experiment("elsewhere")
    given = mlflow_store.create_run(elsewhere).info.run_id
    mlflow_store.log_param(given, "lr", "1e-5")  # as `mlflow run` logs what it is given: bare key, text
    monkeypatch.setenv("MLFLOW_RUN_ID", given)
    with opened(params={"train.lr": 0.00001}) as run:
        assert run.id == given
        with opened() as second:
            assert second.id != given
    stored = mlflow_store.get_run(given)
    assert stored.info.run_name == "safemax-tiny-forget0"
    assert stored.info.status == "FINISHED"
    assert stored.info.experiment_id == elsewhere
    assert f"experiments/{elsewhere}/runs" in run.url
    assert mlflow_store.get_run(second.id).info.experiment_id != elsewhere


def _joining(client: MlflowClient, monkeypatch: pytest.MonkeyPatch, name: str | None) -> str:
    """Open a run as `mlflow run` does, with a name or the one that MLflow makes up; return its id."""
    run_id = client.create_run(client.create_experiment("elsewhere")).info.run_id
    if name is not None:
        client.set_tag(run_id, "mlflow.runName", name)  # as --run-name does
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    return str(run_id)


@pytest.mark.parametrize(
    ("given", "shown"), [(None, "safemax-tiny-forget0"), ("mine", "mine"), ("my-run-7", "my-run-7"), ("é ü", "é ü")]
)
def test_a_name_that_the_user_gave_stays(
    mlflow_store: MlflowClient, monkeypatch: pytest.MonkeyPatch, given: str | None, shown: str
) -> None:
    _joining(mlflow_store, monkeypatch, given)
    with opened() as run:
        pass
    assert mlflow_store.get_run(run.id).info.run_name == shown


def _end(client: MlflowClient, run_id: str, how: str) -> None:
    if how == "deleted":
        client.delete_run(run_id)
    elif how == "joined":
        client.log_param(run_id, tracking.PROCESS, "elsewhere/7")
    else:
        client.set_terminated(run_id, how)


@pytest.mark.parametrize("how", ["FINISHED", "FAILED", "KILLED", "SCHEDULED", "deleted", "joined"])
@pytest.mark.parametrize("by", ["run", "setup"])
def test_a_run_that_cannot_be_joined_is_refused_and_left_as_it_was(
    mlflow_store: MlflowClient, monkeypatch: pytest.MonkeyPatch, how: str, by: str
) -> None:
    run_id = _joining(mlflow_store, monkeypatch, "theirs")
    _end(mlflow_store, run_id, how)
    before = mlflow_store.get_run(run_id).to_dictionary()
    with pytest.raises(InputError, match=f"^MLFLOW_RUN_ID = {run_id} cannot be joined: .*; unset MLFLOW_RUN_ID"):
        tracking.setup("tiny-ddpm") if by == "setup" else opened().__enter__()
    assert mlflow_store.get_run(run_id).to_dictionary() == before
    assert len(mlflow_store.search_runs(["1", "2"], run_view_type=ViewType.ALL)) == 1


@pytest.mark.parametrize("run_id", ["0" * 32, "nobody", "../x"])
def test_a_run_that_does_not_exist_is_refused(
    mlflow_store: MlflowClient, monkeypatch: pytest.MonkeyPatch, run_id: str
) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    with pytest.raises(InputError, match="cannot be joined: no such run"):
        tracking.setup("tiny-ddpm")


@pytest.mark.parametrize("given", [{"NAME": "mine"}, {"ID": "1"}, {"NAME": "mine", "ID": "0"}], ids=str)
def test_the_users_experiment_wins_over_ours(
    mlflow_store: MlflowClient, monkeypatch: pytest.MonkeyPatch, given: dict[str, str]
) -> None:
    mine = mlflow_store.create_experiment("mine")
    for key, value in given.items():
        monkeypatch.setenv(f"MLFLOW_EXPERIMENT_{key}", value)
    for name in ("tiny-ddpm", "administration"):
        assert tracking.setup(name) == mine
    with opened() as run:
        pass
    assert mlflow_store.get_run(run.id).info.experiment_id == mine


def test_an_experiment_chosen_for_one_run_is_not_that_of_the_next(mlflow_store: MlflowClient) -> None:
    assert tracking.setup("first") != tracking.setup("second")


def test_an_experiment_that_the_user_names_and_does_not_exist_is_made(
    mlflow_store: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "new")
    made = mlflow_store.get_experiment(tracking.setup("tiny-ddpm"))
    assert made.name == "new"
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "12345")
    with pytest.raises(InputError, match="12345"):
        tracking.setup("tiny-ddpm")


@pytest.mark.slow
@pytest.mark.parametrize(("error", "status"), [("Stopped", "KILLED"), ("InputError", "FAILED")])
def test_mlflow_run_leaves_the_status_as_the_pipeline_wrote_it(
    mlflow_store: MlflowClient, tmp_path: Path, error: str, status: str
) -> None:
    (tmp_path / "MLproject").write_text("name: x\nentry_points: {main: {command: exec python job.py}}\n")
    (tmp_path / "job.py").write_text(
        "from pipelines import tracking\n"
        f"from safemax.errors import {error}\n"
        "with tracking.run('job', experiment='', params={}, tags={}) as run:\n"
        f"    raise {error}\n"
    )
    binaries = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), "PATH": binaries}
    command = [sys.executable, "-m", "mlflow", "run", str(tmp_path), "--env-manager", "local"]
    assert subprocess.run(command, env=environment, check=False, capture_output=True).returncode != 0
    (run,) = mlflow_store.search_runs(["0"])
    assert (run.info.run_name, run.info.status) == ("job", status)


def test_a_child_stands_under_its_parent_and_never_joins(
    mlflow_store: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(experiment="family") as parent:
        monkeypatch.setenv("MLFLOW_RUN_ID", parent.id)
        with opened(parent=parent.id) as child:
            assert child.id != parent.id
    stored = mlflow_store.get_run(child.id)
    assert stored.data.tags["mlflow.parentRunId"] == parent.id
    assert stored.info.experiment_id == mlflow_store.get_run(parent.id).info.experiment_id


def test_a_parameter_without_a_dot_is_refused_because_mlflow_run_has_logged_it(mlflow_store: MlflowClient) -> None:
    with pytest.raises(ValueError, match="lr"), opened(params={"lr": 1e-5}):
        pass


def test_hundreds_of_metrics_take_few_calls(mlflow_store: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = _count(monkeypatch, "log_batch")
    with opened() as run:
        before = len(calls)
        for step in range(450):
            run.log({"loss/forget": float(step)}, step)
    assert len(calls) - before == 5  # 450 in hundreds
    history = mlflow_store.get_metric_history(run.id, "loss/forget")
    assert [(m.step, m.value) for m in history] == [(step, float(step)) for step in range(450)]


def test_metrics_do_not_wait_for_the_end_of_the_run(
    mlflow_store: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "FLUSH_SECONDS", 0.0)
    with opened() as run:
        run.log({keys.UA: 99.0})
        assert mlflow_store.get_run(run.id).data.metrics == {keys.UA: 99.0}


def test_a_metric_that_is_not_finite_is_kept_as_it_is(mlflow_store: MlflowClient) -> None:
    with opened() as run:
        run.log({keys.FID_JUDGE: math.nan})
    assert math.isnan(mlflow_store.get_run(run.id).data.metrics[keys.FID_JUDGE])


def test_training_goes_on_while_the_store_is_away_and_every_metric_arrives_once(
    mlflow_store: MlflowClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(runs, "FLUSH_SECONDS", 0.0)
    with opened() as run:
        with monkeypatch.context() as outage:
            outage.setattr(MlflowClient, "log_batch", _unavailable)
            for step in range(5):
                run.log({"loss/forget": float(step)}, step)
        run.log({"loss/forget": 5.0}, 5)
    assert [m.step for m in mlflow_store.get_metric_history(run.id, "loss/forget")] == [0, 1, 2, 3, 4, 5]
    assert "5 metrics pending" in caplog.text


def test_a_class_may_have_a_name_that_no_metric_may(mlflow_store: MlflowClient) -> None:
    with opened() as run:
        run.log({"retain_class/accuracy_colt's foot (wild)": 1.0})
    assert mlflow_store.get_run(run.id).data.metrics == {"retain_class/accuracy_colt-s foot -wild-": 1.0}


def test_a_password_in_an_address_reaches_no_run(mlflow_store: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.orig_argv", ["python", "--storage=postgresql://me:secret@host:5432/studies"])
    with opened() as run:
        pass
    recorded = mlflow.artifacts.load_dict(f"runs:/{run.id}/environment.json")["environment"]
    assert recorded["command"] == "python --storage=postgresql://me:***@host:5432/studies"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (MlflowException("no", error_code=PERMISSION_DENIED), "denies access: no"),
        (requests.ConnectionError("refused\nby the host"), "does not answer: refused"),
        (OperationalError("SELECT 1", {}, Exception("no such table")), "a database cannot be used"),
        (
            RestException({"error_code": "INTERNAL_ERROR", "message": "no space\nleft"}),
            "failed; the same command resumes",
        ),
        (MlflowException("API request to endpoint /x failed with error code 502 != 200"), "failed; the same command"),
        (RestException({"error_code": "INVALID_PARAMETER_VALUE", "message": "of ours"}), None),
        (KeyError("t"), None),
        (MlflowException("a fault"), None),
    ],
)
def test_a_store_that_cannot_be_used_is_reported_in_one_line(error: Exception, line: str | None) -> None:
    message = tracking.refusal(error)
    assert message is None if line is None else line in str(message) and "\n" not in str(message)


def test_a_metric_that_no_store_would_take_is_an_error_at_once(
    mlflow_store: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "FLUSH_SECONDS", 0.0)
    with pytest.raises(MlflowException, match="exceeds the maximum length"), opened() as run:
        run.log({"k" * 300: 1.0})
    assert mlflow_store.get_run(run.id).info.status == "FAILED"


def test_a_picture_of_the_charts_has_its_step(mlflow_store: MlflowClient) -> None:
    with opened() as run:
        for step in (0, 50):
            run.chart_picture(Image.new("L", (8, 8)), "samples/forget", step)
    steps = [f.path.split("+")[2] for f in mlflow_store.list_artifacts(run.id, "images") if f.path.endswith(".png")]
    assert sorted(steps) == ["0", "50"]


@pytest.mark.parametrize("make", [lambda: Image.new("L", (8, 8)), lambda: Figure(figsize=(1, 1))])
def test_a_picture_is_a_file_that_notes_can_show(mlflow_store: MlflowClient, make: Callable[[], Any]) -> None:
    with opened() as run:
        markdown = run.picture(make(), "samples/forget")
    assert markdown == f"![samples/forget](get-artifact?run_uuid={run.id}&path=pictures/samples/forget.png)"
    assert [f.path for f in mlflow_store.list_artifacts(run.id, "pictures/samples")] == ["pictures/samples/forget.png"]


def test_a_note_sets_space_between_the_columns_of_its_tables_and_leaves_the_rest(mlflow_store: MlflowClient) -> None:
    with opened() as run:
        run.note("a | b\n\n| metric | base |\n| :--- | ---: |\n| UA | 1 |")
    note = mlflow_store.get_run(run.id).data.tags["mlflow.note.content"]
    assert note == "a | b\n\n| metric |&emsp;base |\n| :--- | ---: |\n| UA |&emsp;1 |"


def test_a_note_leaves_out_the_last_parts_where_it_would_be_cut(mlflow_store: MlflowClient) -> None:
    with opened() as run:
        run.note("first", "second", "x" * 8000)
    assert mlflow_store.get_run(run.id).data.tags["mlflow.note.content"] == "first\n\nsecond"


def test_json_tables_and_files_are_artifacts(mlflow_store: MlflowClient, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("<p>")
    with opened() as run:
        run.json({"steps": 20}, "protocol")
        run.table(pd.DataFrame({"metric": [keys.UA], "base": [1.0]}), "summary")
        run.artifact(tmp_path / "report.html", "report")
    assert mlflow.artifacts.load_dict(f"runs:/{run.id}/protocol.json") == {"steps": 20}
    assert mlflow.artifacts.load_dict(f"runs:/{run.id}/summary.json")["data"] == [[keys.UA, 1.0]]
    assert mlflow.artifacts.load_text(f"runs:/{run.id}/report/report.html") == "<p>"


def test_the_dataset_is_recorded_with_name_digest_shape_and_purpose(mlflow_store: MlflowClient) -> None:
    data = tiny_models.dataset()
    with opened() as run:
        run.dataset(data, "training")
    inputs = mlflow_store.get_run(run.id).inputs
    assert inputs is not None
    (given,) = inputs.dataset_inputs
    assert given.dataset.name == "tiny"
    assert data.digest.startswith(given.dataset.digest)
    assert "[-1, 1, 8, 8]" in str(given.dataset.schema)
    assert [(tag.key, tag.value) for tag in given.tags] == [("mlflow.data.context", "training")]


def test_the_address_opens_the_mode_that_shows_training_runs(
    mlflow_store: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened() as run:
        page = f"/#/experiments/{mlflow_store.get_run(run.id).info.experiment_id}/runs/{run.id}"
    assert run.url == f"http://127.0.0.1:5000{page}?workflowType=machine_learning"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.internal:8080/")
    assert tracking.Run(mlflow_store, "r", "1").url.startswith("http://mlflow.internal:8080/#/experiments/1/runs/r?")


def test_the_store_is_mlflow_db_in_the_working_directory_where_nothing_else_is_said(
    mlflow_store: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.setattr("mlflow.tracking._tracking_service.utils._tracking_uri", None)
    tracking.store()
    assert mlflow.get_tracking_uri() == f"sqlite:///{tmp_path / 'mlflow.db'}"


def test_a_deleted_experiment_is_refused_in_one_line(mlflow_store: MlflowClient) -> None:
    mlflow_store.delete_experiment(mlflow_store.create_experiment("gone"))
    with pytest.raises(InputError, match="experiment gone is deleted; restore it") as refusal:
        tracking.setup("gone")
    assert "\n" not in str(refusal.value)


def test_a_server_that_does_not_answer_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # the discard port: nobody listens
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(InputError, match="tracking store http://127.0.0.1:9 cannot be used") as refusal:
        tracking.setup("tiny-ddpm")
    assert "\n" not in str(refusal.value)


def _count(monkeypatch: pytest.MonkeyPatch, name: str) -> list[str]:
    calls: list[str] = []
    real = getattr(MlflowClient, name)

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        return real(*args, **kwargs)

    monkeypatch.setattr(MlflowClient, name, counted)
    return calls


def _unavailable(*args: Any, **kwargs: Any) -> None:
    raise MlflowException("API request failed: connection refused")
