"""What a demo asks of a tracking server stays within bounds, and the benchmark counts it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from benchmarks.tracking import LOGGING, Calls, run_demo, table
from tests.pipelines.test_end_to_end import SMALL
from tests.support.mlflow_servers import Server

BEFORE = 1326  # requests of a demo before a process kept the versions that it had verified


def test_calls_are_timed_once_and_as_they_were_again_afterwards(mlflow_store: MlflowClient, tmp_path: Path) -> None:
    (tmp_path / "file.txt").write_text("text")
    run, whole = mlflow_store.create_run("0"), MlflowClient.log_text
    started = time.perf_counter()
    with Calls() as calls:
        mlflow_store.log_text(run.info.run_id, "text", "text.txt")  # which MLflow does by log_artifact
        with calls.ignored():
            mlflow_store.set_tag(run.info.run_id, "key", "value")
    mlflow_store.log_text(run.info.run_id, "text", "other.txt")
    assert MlflowClient.log_text is whole
    frame = table(calls.seconds, "call")
    assert frame["count"].to_dict() == {"log_text": 1}
    assert 0 < frame["sum"].sum() < time.perf_counter() - started
    assert set(dir(MlflowClient)) >= LOGGING


@pytest.mark.slow
def test_a_demo_sends_fewer_requests_than_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    server = Server(tmp_path).start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
    try:
        _, sent, _ = run_demo(SMALL)
    finally:
        server.kill()
    kinds = table(sent.seconds, "request")["count"]
    assert (
        kinds.sum() < BEFORE
    )  # 1,144 on 2026-11-27; five for each file of a version, most of which are our code, which grows
    assert kinds[~kinds.index.str.contains("artifact")].sum() < 200  # 184 on that day
    # Of the two versions, both are read back when they are registered, and the base once more, to be corrected and measured.
    assert kinds["GET artifact of a model"] == 1.5 * kinds["PUT artifact of a model"]
