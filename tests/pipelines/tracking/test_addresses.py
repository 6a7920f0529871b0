"""No password of an address is shown, and nothing else of it is lost."""

from __future__ import annotations

import pytest
from mlflow import MlflowClient

from pipelines import tracking
from pipelines.tracking.addresses import without_login, without_password
from safemax.errors import InputError


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://ana:secret@host:5432/studies", "postgresql://ana:***@host:5432/studies"),
        ("postgresql://ana:se@cr/et@host/studies", "postgresql://ana:***@host/studies"),
        ("http://:secret@host", "http://:***@host"),
        (
            "postgresql://host/studies?user=ana&password=secret&x=1",
            "postgresql://host/studies?user=ana&password=***&x=1",
        ),
        ("a --b=c://d:secret@e, f://g:secret@h", "a --b=c://d:***@e, f://g:***@h"),
        ("postgresql://user@x:secret@host/db", "postgresql://user@x:***@host/db"),
        ("postgresql://ana:my secret@host/db", "postgresql://ana:***@host/db"),
        ("postgresql://ana:se@cr et@host/db", "postgresql://ana:***@host/db"),
        ("postgresql://ana:@host/db", "postgresql://ana:***@host/db"),
        ("https://dapi0123@host/api", "https://***@host/api"),
        ("HTTP://dapi0123@host", "HTTP://***@host"),
        ("https://host/path/@user", "https://host/path/@user"),
        (
            "cannot open a://b:secret@c; retry a://b:secret@c\nhttp://t0ken@d",
            "cannot open a://b:***@c; retry a://b:***@c\nhttp://***@d",
        ),
        ("postgresql://h/d?sslpassword=secret&x=1", "postgresql://h/d?sslpassword=***&x=1"),
        ("postgresql://h/d?PASSWORD=secret", "postgresql://h/d?PASSWORD=***"),
        ("https://h/d?access_token=secret&x=1", "https://h/d?access_token=***&x=1"),
        ("connection failed: host=h password=secret user=ana", "connection failed: host=h password=*** user=ana"),
        ("python --api-key=secret --x", "python --api-key=*** --x"),
        ("postgresql://ana@host/studies", "postgresql://ana@host/studies"),
        ("http://127.0.0.1:5000/#/experiments/1", "http://127.0.0.1:5000/#/experiments/1"),
        ("sqlite:////home/ana/mlflow.db", "sqlite:////home/ana/mlflow.db"),
    ],
)
def test_the_password_is_masked_and_the_rest_stays(text: str, shown: str) -> None:
    assert without_password(text) == shown


@pytest.mark.parametrize(
    "address",
    [
        *("https://ana:secret@mlflow.example.org:8080/", "https://mlflow.example.org:8080"),
        *("https://ana:se/cr@et@mlflow.example.org:8080", "https://t0ken@mlflow.example.org:8080/"),
        *("https://user@x:secret@mlflow.example.org:8080", "https://ana:my secret@mlflow.example.org:8080"),
        "https://mlflow.example.org:8080/?token=secret",
    ],
)
def test_a_link_to_a_server_holds_no_login(address: str) -> None:
    assert without_login(address) == "https://mlflow.example.org:8080"


@pytest.mark.parametrize("login", ["ana:secret", "user@x:secret", "secret", "ana:se/secret", "ana:a secret"])
def test_the_page_of_a_run_holds_no_login(monkeypatch: pytest.MonkeyPatch, login: str) -> None:
    monkeypatch.setattr("mlflow.get_tracking_uri", lambda: f"https://{login}@mlflow.example.org/")
    run = tracking.Run(MlflowClient("sqlite://"), "r", "1")
    assert run.url == f"https://mlflow.example.org/#/experiments/1/runs/r?{tracking.MODE}"


def test_a_store_that_cannot_be_used_is_named_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ana:secret@127.0.0.1:9")  # the discard port: nobody listens
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(InputError, match=r"ana:\*\*\*@127.0.0.1:9 cannot be used") as refusal:
        tracking.setup("tiny-ddpm")
    assert "secret" not in str(refusal.value)
