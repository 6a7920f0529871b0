"""Somebody who opens MLflow's pages finds on the first screen of each what they came for; the screenshots in docs/ are made here.

SAFEMAX_SCREENSHOTS=docs pytest -m slow tests/pipelines/test_ui.py      (the demo at its full size)
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import mlflow
import psutil
import pytest
import requests
from mlflow import MlflowClient
from mlflow.entities import Run

from pipelines import demo as demo_module
from pipelines import ui
from pipelines.evaluate import evaluate
from pipelines.promote import promote
from pipelines.tracking import pages
from safemax import metric_keys as keys
from safemax.errors import InputError
from tests.pipelines.test_end_to_end import EVALUATION, SMALL
from tests.pipelines.tracking.test_server import OPEN
from tests.support.browser import SHOTS, Reader, opened
from tests.support.mlflow_servers import free_port

ROOT = Path(__file__).parents[2]
RUN, MODEL = "safemax-digits-forget0-seed0", "models:/digits-ddpm/2"


def test_links_lead_to_experiments_and_models_in_the_training_mode(mlflow_store: MlflowClient) -> None:
    mlflow_store.create_experiment("tiny-ddpm")
    mlflow_store.create_registered_model("tiny-ddpm")
    view = "runs?viewStateShareKey=corrections&workflowType=machine_learning"
    assert ui.links(mlflow_store, "http://127.0.0.1:7") == [
        f"Default               http://127.0.0.1:7/#/experiments/0/{view}",
        f"tiny-ddpm             http://127.0.0.1:7/#/experiments/1/{view}",
        "tiny-ddpm (versions)  http://127.0.0.1:7/#/models/tiny-ddpm?workflowType=machine_learning",
    ]


def test_the_server_is_bound_to_the_loopback_interface_with_one_worker() -> None:
    words = ui.command("sqlite:///mlflow.db", 5000)
    assert "--host 127.0.0.1 --port 5000 --workers 1" in " ".join(words)


def test_a_store_that_is_a_server_is_not_served_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.setattr("mlflow.tracking._tracking_service.utils._tracking_uri", None)
    with pytest.raises(InputError, match="is already a server"):
        ui.ui([])


def test_an_experiment_gets_the_view_once_and_a_newer_one_replaces_it(mlflow_store: MlflowClient) -> None:
    for _ in range(2):
        pages.save_view(mlflow_store, mlflow_store.get_experiment("0"))
        tags = mlflow_store.get_experiment("0").tags
        assert list(json.loads(tags["mlflow.sharedViewState.corrections"])["selectedColumns"]) == list(pages.COLUMNS)
        mlflow_store.set_experiment_tag("0", "mlflow.sharedViewState.corrections", "{}")


def wait_for(address: str) -> None:
    for _ in range(240):
        with contextlib.suppress(requests.ConnectionError):
            requests.get(address, timeout=60)
            return
        time.sleep(0.5)


@pytest.fixture(scope="module")
def store(mlflow_module_store: MlflowClient, tmp_path_factory: pytest.TempPathFactory) -> MlflowClient:
    """A store with a base, its examined and promoted correction, and a search that was killed after its first trial."""
    gates = tmp_path_factory.mktemp("gates") / "open.yaml"
    gates.write_text(json.dumps(OPEN))
    whole = SHOTS in os.environ
    demo_module.demo([] if whole else SMALL)
    evaluate([f"--model={MODEL}", "--attack-run=none", *([] if whole else EVALUATION)])
    promote(["--version=2", "--remeasure=false", f"--gates={gates}"])
    _leave_a_search([] if whole else EVALUATION)
    return mlflow_module_store


def _leave_a_search(evaluation: list[str]) -> None:
    """Kill a search when its first trial has ended."""
    words = [
        "-m",
        "hpo.search",
        "--trials=6",
        "--forget=0",
        "--steps=4",
        "--batch-size=8",
        "--prune=false",
        *evaluation,
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, *words], env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout
        assert any(line.startswith("[1/6]") for line in process.stdout)
        os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def links(store: MlflowClient) -> Iterator[dict[str, str]]:
    """The links that the command prints, by name, while it serves the store."""
    port = free_port()
    command = [sys.executable, "-m", "pipelines.ui", f"--port={port}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            assert process.stdout
            lines = [process.stdout.readline() for _ in range(5)]
            wait_for(f"http://127.0.0.1:{port}/health")
            assert len(psutil.Process(process.pid).children(recursive=True)) == 1  # none that waits for jobs
            pairs = (line.rsplit(maxsplit=1) for line in lines if "http://" in line)
            yield {name.strip(): address for name, address in pairs} | {"": f"http://127.0.0.1:{port}"}
        finally:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def reader(links: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    with opened(tmp_path_factory.mktemp("profile")) as browser:
        first = Reader(browser)
        browser.get(links["digits-ddpm"])
        first.clicks("//button[@aria-label='Close']")  # of the assistant that MLflow opens once beside its pages
        yield first


def run_of(store: MlflowClient, kind: str) -> Run:
    experiment = store.get_experiment_by_name("digits-ddpm")
    assert experiment is not None
    (found,) = store.search_runs([experiment.experiment_id], f"tags.kind = '{kind}'")
    return found


def page_of(store: MlflowClient, links: dict[str, str], kind: str) -> str:
    found = run_of(store, kind)
    return f"{links['']}/{pages.run_page(found.info.experiment_id, found.info.run_id)}"


def charts_of(store: MlflowClient, links: dict[str, str]) -> str:
    return f"{page_of(store, links, 'correction').partition('?')[0]}/model-metrics?{pages.MODE}"


@pytest.mark.slow
def test_the_table_of_runs_shows_verdict_ua_and_fid_and_leads_to_a_run(links: dict[str, str], reader: Reader) -> None:
    reader.opens(links["digits-ddpm"])
    reader.finds(f"//a[contains(., '{RUN}')]")
    left = [
        reader.finds_within(f"//*[@role='columnheader'][contains(., '{name}')]", 1).location["x"]
        for name in ("verdict", keys.UA, keys.UA_REJECT, keys.FID_JUDGE, keys.FID_JUDGE + keys.DELTA, keys.ACCURACY)
    ]
    assert left == sorted(left)
    reader.keeps("ui-experiment")
    reader.clicks(f"//a[contains(., '{RUN}')]")
    reader.finds("//*[contains(., 'unlearning.method')]")
    reader.finds("//a[text()='Runs']")  # the sidebar of the mode for training runs


@pytest.mark.slow
def test_a_click_on_ua_sorts_the_runs_by_it(store: MlflowClient, links: dict[str, str], reader: Reader) -> None:
    experiment = store.get_experiment_by_name("digits-ddpm")
    assert experiment is not None
    by_ua = store.search_runs([experiment.experiment_id], order_by=[f"metrics.`{keys.UA}` DESC"])
    names = [each.info.run_name for each in by_ua if keys.UA in each.data.metrics]
    assert len(names) > 2
    reader.opens(links["digits-ddpm"])
    reader.clicks(f"//*[@data-testid='sort-header-{keys.UA}']")
    reader.finds(f"//*[@role='columnheader'][@aria-sort='descending'] | //button[contains(., 'Sort: {keys.UA}')]")
    for index, name in enumerate(names):
        reader.finds(f"//*[@role='row'][@row-index='{index}'][contains(., '{name}')]")


@pytest.mark.slow
def test_a_run_shows_its_verdict_and_what_the_model_draws_at_first_sight(
    store: MlflowClient, links: dict[str, str], reader: Reader
) -> None:
    reader.opens(page_of(store, links, "correction"))
    words = run_of(store, "correction").data.tags["verdict"].replace("_", " ").capitalize()
    reader.finds_within(f"//strong[starts-with(., '{words}: ')]", 0.5)
    reader.sees_picture("forgotten.png", 0.5)
    reader.clicks("//*[text()='Show more']")
    reader.sees_picture("comparison.png")
    reader.finds("//td[contains(., 'forget/ua_reject')]")
    reader.keeps("ui-run")


@pytest.mark.slow
def test_a_run_charts_its_losses_within_two_screens(store: MlflowClient, links: dict[str, str], reader: Reader) -> None:
    reader.opens(charts_of(store, links))
    reader.finds("//*[contains(@class, 'js-plotly-plot')]")
    reader.finds_within("//*[normalize-space(text())='loss']", 2)
    reader.keeps("ui-charts")


@pytest.mark.slow
def test_the_pictures_of_a_run_are_seen_at_first_sight_from_step_0_and_bear_labels(
    store: MlflowClient, links: dict[str, str], reader: Reader
) -> None:
    found = run_of(store, "correction")
    reader.opens(charts_of(store, links))
    reader.types("//input[contains(@placeholder, 'Search metric charts')]", "samples")
    for key in ("by_step", "forgotten"):
        picture = reader.sees_picture("run_uuid=" + found.info.run_id, 0.5, f"//*[contains(text(), 'samples/{key}')]")
        assert picture.location["y"] + picture.size["height"] < reader.screen
    reader.keeps("ui-pictures")
    paths = [each.path for each in store.list_artifacts(found.info.run_id, "images") if "samples~by_step" in each.path]
    assert min(int(each.split("+")[2]) for each in paths) == 0


@pytest.mark.slow
def test_the_tab_of_models_shows_the_data_and_begins_its_numbers_with_ua_by_which_python_sorts(
    store: MlflowClient, links: dict[str, str], reader: Reader
) -> None:
    found = run_of(store, "correction")
    reader.opens(f"{links['']}/#/experiments/{found.info.experiment_id}/models?{pages.MODE}")
    reader.finds("//*[@role='gridcell'][contains(., 'digits (#')]")
    # MLflow's builds switch its choice of metrics off; the day they do not, docs/promote.md is to say so.
    part = "starts-with(@data-component-id, 'mlflow.logged_model.list.{}')"
    reader.finds(f"//*[{part.format('sort')}][contains(., 'Sort: Created')]")
    assert not reader.browser.find_elements("xpath", f"//*[{part.format('order_by')}]")
    reader.scrolls_right("[class*=ag-body-horizontal-scroll-viewport]", 1000)  # past the six columns of attributes
    reader.finds_within(f"//*[@role='columnheader'][contains(@col-id, '\"{keys.UA}\"')]", 1)
    ua = f"{found.data.metrics[keys.UA]:g}"[:5]
    cell = f"contains(@col-id, ';{keys.UA}&')"  # where MLflow writes &quot; for "
    reader.finds_within(f"//*[@role='gridcell'][{cell}][starts-with(., '{ua}')]", 1)
    reader.keeps("ui-models")
    models = mlflow.search_logged_models(
        [found.info.experiment_id],
        order_by=[{"field_name": f"metrics.{keys.UA}", "ascending": False}],
        output_format="list",
    )
    assert models[0].source_run_id == found.info.run_id


@pytest.mark.slow
def test_a_version_shows_its_verdict_and_leads_to_report_run_parent_and_alias(
    store: MlflowClient, links: dict[str, str], reader: Reader
) -> None:
    reader.opens(f"{links['']}/{pages.version_page('digits-ddpm', '2')}")
    reader.finds_within("//strong[starts-with(., 'Examined on ')]", 0.5)
    reader.finds("//*[contains(text(), 'champion')]")
    reader.sees_picture("comparison.png")
    reader.finds("//a[contains(., 'digits-ddpm version 1')]")
    reader.keeps("ui-version")
    reader.clicks("//a[text()='Open the report']")  # a link in a text opens a tab
    reader.turns_to_new_tab()
    reader.finds("//iframe | //*[contains(text(), 'report.html')]")


@pytest.mark.slow
def test_the_page_of_an_unfinished_search_says_how_far_it_is(
    store: MlflowClient, links: dict[str, str], reader: Reader
) -> None:
    reader.opens(page_of(store, links, "search"))
    reader.finds_within("//strong[contains(., 'Search under way')]", 0.5)
    reader.finds_within("//*[contains(text(), '1 of 6 trials ended')]", 0.5)
    reader.keeps("ui-search")
