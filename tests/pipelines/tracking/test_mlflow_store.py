"""A search returns what the store holds, however many pages that is."""

from __future__ import annotations

import pytest
from mlflow import MlflowClient

from pipelines import tracking, ui
from pipelines.registry import model_versions
from pipelines.rollback import rollback
from pipelines.versions import versions
from safemax.errors import InputError

NAMES = [f"model-{number:03d}" for number in range(103)]  # MLflow returns 100 a page


@pytest.fixture(scope="module")
def store(mlflow_module_store: MlflowClient) -> MlflowClient:
    for name in NAMES:
        mlflow_module_store.create_registered_model(name)
    return mlflow_module_store


def test_a_search_returns_all_pages(store: MlflowClient) -> None:
    assert len(store.search_registered_models()) == 100
    assert [each.name for each in tracking.search_all(store.search_registered_models)] == NAMES
    few = tracking.search_all(store.search_registered_models, max_results=7, filter_string="name LIKE 'model-00%'")
    assert [each.name for each in few] == NAMES[:10]


def test_the_links_lead_to_the_last_model_too(store: MlflowClient) -> None:
    assert [line for line in ui.links(store, "") if line.startswith(NAMES[-1])]


def test_the_versions_of_the_last_model_are_listed(store: MlflowClient, capsys: pytest.CaptureFixture[str]) -> None:
    versions([f"--model={NAMES[-1]}"])
    assert capsys.readouterr().out == f"{NAMES[-1]} has no versions\n"


def test_a_refusal_lists_the_last_model_as_known(store: MlflowClient) -> None:
    with pytest.raises(InputError, match=f"known: model-000, .*, {NAMES[-1]}$"):
        model_versions.version_of("models:/nobody/1")
    with pytest.raises(InputError, match=f"unknown version of {NAMES[-1]} '1'; known: none"):
        model_versions.version_of(f"models:/{NAMES[-1]}/1")
    with pytest.raises(InputError, match=f"known: model-000, .*, {NAMES[-1]}$"):
        rollback(["--model=nobody"])
