"""Versions stand side by side, and a filter compares numbers as numbers and runs nothing."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient

from pipelines import tracking
from pipelines.registry import aliases
from pipelines.registry.version_filter import conditions
from pipelines.registry.version_table import TEXTS, rows, table
from pipelines.versions import versions
from safemax import metric_keys as keys
from safemax.errors import InputError
from safemax.reports.html import table_page

NAME = "tiny-ddpm"
KNOWN = ("ua", "fid", keys.UA, "method", "aliases")


@pytest.fixture
def store(mlflow_store: MlflowClient) -> MlflowClient:
    """A base and two corrections, the second the champion."""
    mlflow_store.create_registered_model(NAME)
    corrected = {"kind": "correction", "forgotten": "0", "parent": "models:/tiny-ddpm/1", "verdict": "forgotten"}
    tags = [
        {"kind": "base", keys.RUNTIME_MINUTES: "1.25"},
        {**corrected, "unlearning.method": "safemax", keys.UA: "100", keys.FID_JUDGE: "9.5"},
        {**corrected, "unlearning.method": "salun", keys.UA: "99.2", keys.FID_JUDGE: "20"},
    ]
    run_id = mlflow_store.create_run("0").info.run_id
    mlflow_store.log_metric(run_id, "retain_class/accuracy_3", 97.0)
    for each in tags:
        mlflow_store.create_model_version(NAME, "nowhere", run_id if each is tags[1] else "f" * 32, tags=each)
    mlflow_store.set_registered_model_alias(NAME, "champion", "2")
    mlflow_store.set_registered_model_alias(NAME, "candidate", "2")
    return mlflow_store


def listed(capsys: pytest.CaptureFixture[str], where: str = "") -> list[str]:
    versions([f"--model={NAME}", f"--where={where}", "--format=csv"])
    return [row["version"] for row in csv.DictReader(io.StringIO(capsys.readouterr().out))]


def test_a_row_says_method_classes_numbers_verdict_aliases_and_parent(store: MlflowClient) -> None:
    frame = table(rows(NAME))
    assert list(frame.index) == ["1", "2", "3"]
    shown = frame.loc["2", ["method", "forgotten", "ua", "fid", "verdict", "aliases", "parent"]]
    assert list(shown) == ["safemax", "0", 100.0, 9.5, "forgotten", "candidate,champion", "1"]
    assert frame.loc["1", "method"] == "base"
    assert math.isnan(frame.loc["1", "ua"])


@pytest.mark.parametrize(
    ("where", "numbers"),
    [
        ("", ["1", "2", "3"]),
        ("ua>=99 and fid<20", ["2"]),  # as text, "9.5" < "20" is false
        ("ua >= 99  and  fid <= 2e1", ["2", "3"]),
        ("ua>=99.2 and ua<100", ["3"]),
        ("forget/ua=100", ["2"]),
        ("retain/fid_judge>10", ["3"]),
        ("retain_class/accuracy_3>=97", ["2"]),  # a metric of its run
        ("minutes<2", ["1"]),
        ("ua!=100", ["3"]),  # the base has none
        ("method=salun", ["3"]),
        ("method!=salun and verdict=forgotten", ["2"]),
        ("ua>100", []),
    ],
)
def test_a_filter_keeps_the_versions_that_meet_it(
    store: MlflowClient, capsys: pytest.CaptureFixture[str], where: str, numbers: list[str]
) -> None:
    assert listed(capsys, where) == numbers


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("fids>=99", "unknown number or column 'fids' .did you mean 'fid'"),
        ("ua", "is not a comparison; write NAME>=NUMBER"),
        ("ua>=99 or fid<20", "is not a comparison"),
        ("ua>=ninety", "ua is compared with a number"),
        ("ua>=nan", "ua is compared with a number"),
        ("method>=a", "method is text, which only = and != compare"),
        ("__import__('os').system('true')", "is not a comparison"),
        ("ua>=(lambda:1)()", "ua is compared with a number"),
        ("ua>=99 and", "is not a comparison"),
        ("and", "is not a comparison"),
        ("ua>=99;fid<20", "ua is compared with a number"),
    ],
)
def test_what_is_no_filter_is_refused_in_one_line(where: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as refusal:
        conditions(where, KNOWN)
    assert "\n" not in str(refusal.value)


@given(st.text(max_size=60) | st.text(alphabet="ua fid><=!andor0129.e+-()'\"_\n", max_size=60))
def test_any_text_is_a_filter_or_refused(text: str) -> None:
    try:
        found = conditions(text, KNOWN)
    except InputError:
        return
    assert all(each.name in TEXTS or float(each.value) is not None for each in found)


def test_the_table_is_an_artifact_in_three_forms(store: MlflowClient) -> None:
    versions([f"--model={NAME}"])
    experiment = store.get_experiment_by_name(tracking.ADMINISTRATION)
    assert experiment is not None
    (run,) = store.search_runs([experiment.experiment_id])
    assert {"versions.csv", "versions.html", "versions.json"} <= {
        each.path for each in store.list_artifacts(run.info.run_id)
    }
    text = Path(store.download_artifacts(run.info.run_id, "versions.html")).read_text()
    assert "salun" in text


def test_a_page_escapes_what_users_wrote(store: MlflowClient) -> None:
    store.set_model_version_tag(NAME, "3", "unlearning.method", "<script>alert(1)</script>")
    text = table_page(table(rows(NAME)), "<b>")
    assert "<script>" not in text
    assert "<b>" not in text


def test_a_model_that_nobody_registered_is_refused_with_those_that_are(store: MlflowClient) -> None:
    with pytest.raises(InputError, match="unknown registered model 'tiny'.*tiny-ddpm"):
        versions(["--model=tiny"])


def test_an_alias_that_was_moved_by_hand_is_pointed_out(
    store: MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    listed(capsys)
    assert capsys.readouterr().err == ""
    aliases.move(NAME, "champion", aliases.new_move(aliases.PROMOTE, "2", "3", why="", run_id="0123456789"))
    listed(capsys)
    store.set_registered_model_alias(NAME, "champion", "1")
    versions([f"--model={NAME}"])
    assert "champion points to version 1, which no promotion set" in capsys.readouterr().err
