"""The examples do what they say: MLflow's server tells the receiver of a promotion, and of no forged one."""

from __future__ import annotations

import importlib.util
import queue
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
import requests
from mlflow import MlflowClient
from mlflow.webhooks.delivery import _generate_hmac_signature
from PIL import Image

from tests.support.mlflow_servers import Server
from tests.test_library import displayed

EXAMPLES = Path(__file__).parents[1] / "examples"
SECRET = "a secret of the team"


@pytest.fixture(scope="module")
def webhook() -> ModuleType:
    spec = importlib.util.spec_from_file_location("promotion_webhook", EXAMPLES / "promotion_webhook.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def received(webhook: ModuleType) -> Iterator[tuple[str, queue.Queue[dict[str, str]]]]:
    """A receiver's address, and what it acts on."""
    acts: queue.Queue[dict[str, str]] = queue.Queue()
    server = webhook.receiver(0, SECRET, acts.put)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/promoted", acts
    server.shutdown()
    server.server_close()


def post(url: str, body: str, secret: str, age: int = 0) -> int:
    sent = str(int(time.time()) - age)
    signature = _generate_hmac_signature(secret, "delivery-1", sent, body)
    headers = {"X-MLflow-Delivery-Id": "delivery-1", "X-MLflow-Timestamp": sent, "X-MLflow-Signature": signature}
    return requests.post(url, data=body, headers=headers, timeout=10).status_code


def test_a_delivery_is_acted_on_where_mlflow_signed_it_and_not_where_it_is_forged_or_old(
    received: tuple[str, queue.Queue[dict[str, str]]],
) -> None:
    url, acts = received
    body = '{"data": {"name": "digits-ddpm", "alias": "champion", "version": "2"}}'
    assert post(url, body, "another secret") == 401
    assert post(url, body, SECRET, age=900) == 401
    assert acts.empty()
    assert post(url, body, SECRET) == 204
    assert acts.get_nowait() == {"name": "digits-ddpm", "alias": "champion", "version": "2"}


@pytest.mark.slow
def test_mlflows_server_tells_the_receiver_of_a_promotion(
    webhook: ModuleType,
    received: tuple[str, queue.Queue[dict[str, str]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url, acts = received
    # For this test alone: without these, MLflow posts to https and to public addresses only.
    local = {"MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http", "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true"}
    server = Server(tmp_path, environment=local).start()
    try:
        client = MlflowClient(server.address)
        monkeypatch.setattr(webhook, "MlflowClient", lambda: client)
        assert webhook.register(url, SECRET)
        client.create_registered_model("digits-ddpm")
        run = client.create_run("0").info
        client.create_model_version("digits-ddpm", f"{run.artifact_uri}/model", run.run_id)
        client.set_registered_model_alias("digits-ddpm", "champion", "1")
        assert acts.get(timeout=60) == {"name": "digits-ddpm", "alias": "champion", "version": "1"}
        assert acts.empty()
    finally:
        server.kill()


def test_the_notebook_of_the_whole_way_runs_and_shows_runs_pictures_and_a_drawn_digit(
    schema: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SAFEMAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")  # the notebook sets it; what it set goes with the test
    (tmp_path / "mlflow.db").write_bytes(schema.read_bytes())
    shown = displayed(EXAMPLES / "whole_way.ipynb", BASE_STEPS=3, UNLEARN_STEPS=10, FORGET_SAMPLES=20, JUDGE_STEPS=3)
    tables = [each for each in shown if isinstance(each, pd.DataFrame)]
    assert list(tables[0].index) == ["safemax-digits-forget0-seed0"]
    pictures = [each for each in shown if isinstance(each, Image.Image)]
    assert pictures[-1].size == (160, 160)
    assert len(pictures) == 2
