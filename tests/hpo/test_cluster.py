"""What a search promises on a cluster of two machines, one of which dies; takes minutes."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient
from optuna.trial import TrialState

from hpo.search import run
from pipelines.engine.signals import StopSignal
from tests.hpo.conftest import BuildSearch
from tests.hpo.test_search import trials_of
from tests.support import ray_clusters

pytest.importorskip("ray", reason="needs Ray: pip install 'safemax[ray]'")
pytestmark = pytest.mark.slow


def test_all_of_60_trials_complete_once_although_one_of_two_machines_dies(
    mlflow_store: MlflowClient, tiny_search: BuildSearch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAFEMAX_CACHE", str(tmp_path / "cache"))
    config = tiny_search(trials=60, workers=12, steps=10, cluster="auto")
    with ray_clusters.two_machines(6) as (cluster, second):
        killed: list[Any] = []

        def kill_a_machine() -> None:
            while sum(each.state == TrialState.COMPLETE for each in trials_of(config)) < 10:
                time.sleep(0.1)
            cluster.remove_node(second, allow_graceful=False)
            killed.append(time.monotonic())

        threading.Thread(target=kill_a_machine, daemon=True).start()
        run(config, StopSignal())
        assert killed
        assert psutil.wait_procs(ray_clusters.workers(), 10)[1] == []
    trials = trials_of(config)
    assert [each.number for each in trials] == list(range(60))
    assert {each.state for each in trials} == {TrialState.COMPLETE}
    again = [each for each in trials if each.user_attrs.get("deaths")]
    assert again  # the machine had work
    assert all("worker " in death for each in again for death in each.user_attrs["deaths"])
    everywhere = [each.experiment_id for each in mlflow_store.search_experiments()]
    runs = mlflow_store.search_runs(everywhere, "tags.kind = 'trial'", max_results=200)
    assert sorted(int(each.data.tags["search.trial"]) for each in runs) == list(range(60))
    assert {each.info.status for each in runs} == {"FINISHED"}
    assert mlflow_store.search_runs(everywhere, "attributes.status = 'RUNNING'") == []
    assert psutil.wait_procs(ray_clusters.left_below(), 60)[1] == []


def test_two_machines_without_a_common_disk_are_sent_what_they_need_and_send_back_what_they_made(
    mlflow_store: MlflowClient, tiny_search: BuildSearch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAFEMAX_CACHE", str(tmp_path / "driver"))
    own = [tmp_path / "first", tmp_path / "second"]
    config = tiny_search(trials=8, workers=2, steps=30, cluster="auto")
    with ray_clusters.two_machines(1, [str(each) for each in own]):
        run(config, StopSignal())
    assert {each.state for each in trials_of(config)} == {TrialState.COMPLETE}
    (version,) = mlflow_store.search_model_versions("")  # registered from weights that a machine sent
    assert version.tags["search.study"] == config.study
    pictures = sorted(each.parent.name[:10] for each in (tmp_path / "driver").glob("studies/*/trial-*/samples.png"))
    assert pictures == [f"trial-{number:04d}" for number in range(8)]
    assert not (tmp_path / "driver" / "sources").exists()
    for machine in own:
        assert [each.name for each in machine.glob("bases/*")] == [
            each.name for each in (tmp_path / "driver").glob("bases/*")
        ]
        assert list(machine.glob("judges/*/*.safetensors"))
        assert list(machine.glob("sources/*/*.safetensors"))
        assert list(machine.glob("studies/*/trial-*/samples.png"))  # it did some of the trials
