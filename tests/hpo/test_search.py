"""A whole search on real workers: what it writes to MLflow and to its study, also where workers are killed."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import optuna
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from hpo import storage
from hpo.config import SearchConfig
from hpo.search import run, search
from hpo.study import TrialScheduler
from hpo.trial import weights_of
from pipelines.cli.parameters import UsageError
from pipelines.cli.parser import parse
from pipelines.correction.recorded_data import parse_with_recorded
from pipelines.engine.signals import StopSignal
from pipelines.evaluate import PARAMETERS as EVALUATE
from pipelines.registry import model_versions
from safemax import metric_keys as keys
from safemax.diffusion.model import Diffusion
from safemax.errors import InputError
from tests.hpo.conftest import BuildSearch
from tests.support.ray_clusters import workers

optuna.logging.set_verbosity(optuna.logging.WARNING)


def trials_of(config: SearchConfig) -> list[FrozenTrial]:
    """Return a study's trials, read from outside while it runs; [] before it exists."""
    if not config.journal.exists() or not config.journal.stat().st_size:
        return []
    study = optuna.load_study(study_name=config.study, storage=JournalStorage(JournalFileBackend(str(config.journal))))
    return study.get_trials(deepcopy=False)


class Killer(threading.Thread):
    """Kills workers while trials run, at seeded moments spread over the search."""

    def __init__(self, config: SearchConfig, kills: int) -> None:
        super().__init__(daemon=True)
        self.config, self.over, self.dice = config, threading.Event(), random.Random(0)
        # Not the last trials: the search must not end before its last kill.
        self.after = sorted(self.dice.sample(range(1, config.search.trials - 2), kills))

    def run(self) -> None:
        while self.after and not self.over.wait(self.dice.uniform(0, 0.3)):
            states = [each.state for each in trials_of(self.config)]
            if states.count(TrialState.COMPLETE) < self.after[0] or TrialState.RUNNING not in states:
                continue
            if alive := workers():
                # The last one is the oldest worker, which is not still loading.
                victim = alive[0] if len(self.after) == 1 else self.dice.choice(alive)
                victim.kill()
                del self.after[0]


def killed(config: SearchConfig, kills: int) -> str:
    """Run a search while workers are killed, and return the address of what it registered."""
    killer = Killer(config, kills)
    killer.start()
    try:
        return run(config, StopSignal())
    finally:
        killer.over.set()
        killer.join()
        assert not killer.after


@dataclass
class Searched:
    config: SearchConfig
    address: str
    client: MlflowClient

    @property
    def parent(self) -> Run:
        (parent,) = self.find("tags.kind = 'search'")
        return parent

    @property
    def children(self) -> list[Run]:
        return self.find(f"tags.`mlflow.parentRunId` = '{self.parent.info.run_id}'")

    def find(self, filter_string: str) -> list[Run]:
        everywhere = [each.experiment_id for each in self.client.search_experiments()]
        return list(self.client.search_runs(everywhere, filter_string, order_by=["attributes.start_time"]))

    def artifacts(self, run_id: str) -> set[str]:
        top = self.client.list_artifacts(run_id)
        below = itertools.chain.from_iterable(
            self.client.list_artifacts(run_id, each.path) for each in top if each.is_dir
        )
        return {each.path for each in (*top, *below)}


@pytest.fixture(scope="module")
def searched(
    mlflow_module_store: MlflowClient, tiny_search: BuildSearch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Searched]:
    """A search of eight trials by two workers, one of which was killed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAFEMAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        config = tiny_search(trials=8, workers=2, steps=20)
        yield Searched(config, killed(config, 1), mlflow_module_store)


def test_every_trial_completes_once_although_workers_were_killed(searched: Searched) -> None:
    trials = trials_of(searched.config)
    assert [each.number for each in trials] == list(range(8))
    assert {each.state for each in trials} == {TrialState.COMPLETE}


def test_a_trial_that_was_run_again_says_so_in_study_and_run(searched: Searched) -> None:
    again = {
        each.number: each.user_attrs["deaths"] for each in trials_of(searched.config) if "deaths" in each.user_attrs
    }
    assert sum(map(len, again.values())) <= 1  # 0 where the worker had just sent its result
    for number, deaths in again.items():
        (child,) = (each for each in searched.children if each.data.tags["search.trial"] == str(number))
        assert all("the end of worker " in each for each in deaths)
        assert child.data.tags["trial.deaths"] == "; ".join(deaths)


def test_no_worker_is_still_running(searched: Searched) -> None:
    assert workers() == []


def test_each_trial_has_one_finished_run_with_its_knobs_scores_cost_and_picture(searched: Searched) -> None:
    assert sorted(each.data.tags["search.trial"] for each in searched.children) == sorted(map(str, range(8)))
    for child in searched.children:
        assert child.info.status == "FINISHED"
        assert set(child.data.params) == {"method.lambda", "train.lr"}  # what the search varies
        wanted = {"search/forgetting", "search/quality", keys.UA_REJECT, keys.ACCURACY, "loss/forget"}
        assert wanted | {keys.RUNTIME_MINUTES, keys.PEAK_MEMORY_GB} <= set(child.data.metrics)
        assert "pictures/samples" in searched.artifacts(child.info.run_id)


def test_the_first_trial_has_the_defaults(searched: Searched) -> None:
    (first,) = (each for each in searched.children if each.data.tags["search.trial"] == "0")
    assert (first.data.params["method.lambda"], first.data.params["train.lr"]) == ("1.0", "0.0001")


def test_the_parent_shows_front_history_table_and_the_volume_over_trials(searched: Searched) -> None:
    parent = searched.parent
    assert parent.info.status == "FINISHED"
    shown = {"front.html", "front.json", "trials.json", "pictures/front.png", "pictures/history.png"}
    assert shown | {"pictures/importances.png", "importances.json"} <= searched.artifacts(parent.info.run_id)
    volumes = searched.client.get_metric_history(parent.info.run_id, "search/hypervolume")
    assert sorted(each.step for each in volumes) == list(range(1, 9))
    note = parent.data.tags["mlflow.note.content"]
    assert "path=pictures/front.png" in note
    assert len(parent.data.params) <= 12


def test_only_the_winner_is_registered_with_study_trial_knobs_and_evidence(searched: Searched) -> None:
    (version,) = searched.client.search_model_versions("")
    assert searched.address == f"models:/tiny-ddpm/{version.version}"
    assert version.run_id == searched.parent.info.run_id
    assert version.tags["search.study"] == searched.config.study
    number = int(version.tags["search.trial"])
    trial = trials_of(searched.config)[number]
    evidence = model_versions.evidence(searched.address)
    assert evidence["search"]["values"] == trial.params
    assert evidence["parameters"]["train.lr"] == trial.params["lr"]
    assert str(number) in evidence["search"]["scores"]
    assert "0" in evidence["search"]["scores"]
    examined = parse_with_recorded(lambda known: parse("", "", EVALUATE, [f"--model={searched.address}"], known))
    assert examined["data"] == searched.config.data, "the next command need not be told the data"


def test_the_registered_weights_are_those_that_the_trial_measured_again_had(searched: Searched) -> None:
    (version,) = searched.client.search_model_versions("")
    number = int(version.tags["search.trial"])
    values = searched.config.by_field(trials_of(searched.config)[number].params)
    weights = weights_of(searched.config.trial_config(), number, values)
    registered = Diffusion.load(model_versions.resolve(searched.address)).denoiser.state_dict()
    assert all((registered[name] == value).all() for name, value in weights.items())


def test_the_front_is_measured_on_other_seeds_by_more_samples(searched: Searched) -> None:
    (version,) = searched.client.search_model_versions("")
    evidence = model_versions.evidence(searched.address)
    # The config's trials draw 6 forget and 6 retain images a class at seed 0; final_samples = 2.
    assert (evidence["parameters"]["eval.forget_samples"], evidence["parameters"]["eval.retain_samples"]) == (12, 12)
    assert evidence["parameters"]["eval.seed"] != 0


def test_the_same_command_again_repeats_no_trial_and_adopts_the_runs(searched: Searched) -> None:
    before, earlier = trials_of(searched.config), searched.parent.info.run_id
    run(searched.config, StopSignal())
    assert trials_of(searched.config) == before
    (later,) = (each for each in searched.find("tags.kind = 'search'") if each.info.run_id != earlier)
    assert later.data.tags["resumed_from"] == earlier
    assert len(searched.find(f"tags.`mlflow.parentRunId` = '{later.info.run_id}'")) == 8
    assert len(searched.client.search_model_versions("")) == 1


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["joint", "three"])
def test_a_search_by_another_objective_with_pruning_registers_the_best_member(
    mlflow_store: MlflowClient,
    tiny_search: BuildSearch,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    objective: str,
) -> None:
    monkeypatch.setenv("SAFEMAX_CACHE", str(tmp_path))
    config = tiny_search(objective=objective, prune=True, prefer="knee" if objective == "joint" else "cost", trials=9)
    address = run(config, StopSignal())
    trials = trials_of(config)
    assert {each.state for each in trials} <= {TrialState.COMPLETE, TrialState.PRUNED}
    assert all("probe_50" in each.user_attrs for each in trials)
    evidence = model_versions.evidence(address)["search"]
    key = "joint" if objective == "joint" else "minutes"
    best = min(evidence["front"], key=lambda number: evidence["scores"][str(number)][key])
    assert evidence["trial"] == best


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("--space=lamda=0:5", "unknown knob in space 'lamda' .did you mean 'lambda'"),
        ("--space=lr=1e-3:1e-5", "is empty"),
        (
            "--search_sampler=tpee",
            "unknown search_sampler 'tpee' .did you mean 'tpe'.*known: tpe, gp, nsga2, random, grid",
        ),
        ("--trials=0", "trials = 0 is not allowed; trials is a whole number from 1"),
        ("--storage=mysql://host/db", "storage = mysql://host/db is not allowed"),
        ("--forget=12", "unknown class '12'"),
    ],
)
def test_what_cannot_be_searched_is_refused_before_any_run_is_opened(
    mlflow_store: MlflowClient, tiny_search: BuildSearch, given: str, message: str
) -> None:
    config = tiny_search()
    common = [f"--data={config.data.data}", f"--model={config.source}", "--name=tiny-ddpm"]
    with pytest.raises(InputError, match=message) as caught:
        search([*common, given])
    assert isinstance(caught.value, UsageError) or "storage" in given or "forget" in given
    assert mlflow_store.search_runs([each.experiment_id for each in mlflow_store.search_experiments()]) == []


def test_the_name_of_another_study_is_refused(
    mlflow_store: MlflowClient, tiny_search: BuildSearch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAFEMAX_CACHE", str(tmp_path))
    first, other = (tiny_search(study="mine", space=text) for text in ("auto", "lr=1e-5:1e-4"))
    with storage.opened("auto", "mine", first.journal) as store:
        TrialScheduler(first.plan(), store).study.set_user_attr("key", first.key)
    with pytest.raises(InputError, match="study = mine was started with other parameters"):
        run(other, StopSignal())
