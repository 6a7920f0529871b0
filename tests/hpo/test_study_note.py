"""A study says how far it is from its first minute on, and keeps what it found where nothing met the constraint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient

from hpo.search import run
from hpo.study_note import StudyNote, advice, begun
from pipelines.engine.signals import StopSignal
from safemax.errors import InputError
from tests.hpo.conftest import BuildSearch
from tests.hpo.test_study import PLAN, open_scheduler, run_trials


def test_the_note_of_a_study_counts_its_trials_and_shows_the_best_and_the_front(
    tiny_search: BuildSearch, tmp_path: Path
) -> None:
    with open_scheduler(tmp_path) as scheduler:
        note = StudyNote(tiny_search(), scheduler, unit=1.0)
        assert note.text("", "").startswith("**Search under way**: 0 of 14 trials ended. No trial has a result yet.")
        run_trials(scheduler, 7)
        text = note.text("![front](x)", ", about 3 min left")
        front = scheduler.front()
    assert text.startswith(
        "**Search under way**: 7 of 14 trials ended, about 3 min left. Best so far by prefer=knee: trial "
    )
    assert "![front](x)" in text
    assert all(f"\n| {each.number}" in text for each in front[:6])


def test_a_note_is_due_at_once_and_then_not_before_a_while(tiny_search: BuildSearch, tmp_path: Path) -> None:
    with open_scheduler(tmp_path) as scheduler:
        note = StudyNote(tiny_search(), scheduler, unit=1.0)
        assert [note.is_due(), note.is_due()] == [True, False]


def test_a_study_that_begins_says_what_it_searches(tiny_search: BuildSearch) -> None:
    assert begun(tiny_search(trials=1)).startswith("**Search under way**: safemax on a, 1 trial to run.")


def test_the_advice_names_the_trial_that_comes_nearest(tiny_search: BuildSearch, tmp_path: Path) -> None:
    with open_scheduler(tmp_path, replace(PLAN, accuracy_drop=-9.0)) as scheduler:  # drops of x - 3, of -3 to 1 points
        run_trials(scheduler, 5)
        nearest = min(scheduler.completed, key=lambda each: each.user_attrs["scores"]["accuracy_drop"])
        text = advice(tiny_search(), scheduler)
    assert f"would accept trial {nearest.number} " in text
    assert "trials=28 extends this study" in text


def test_a_study_in_which_nothing_met_the_constraint_keeps_all_it_found(
    mlflow_store: MlflowClient, tiny_search: BuildSearch, hpo_cache: Path
) -> None:
    config = tiny_search(trials=2, study="nothing")
    object.__setattr__(config.search, "accuracy_drop", -200.0)  # no accuracy rises by so much
    with pytest.raises(InputError, match="nothing to register: No trial is within accuracy_drop = -200 points"):
        run(config, StopSignal())
    experiment = mlflow_store.get_experiment_by_name("tiny-ddpm")
    assert experiment is not None
    (study,) = mlflow_store.search_runs([experiment.experiment_id], "tags.kind = 'search'")
    assert study.info.status == "FAILED"
    assert study.data.tags["mlflow.note.content"].startswith("**Nothing registered**: No trial is within")
    artifacts = {each.path for each in mlflow_store.list_artifacts(study.info.run_id)}
    assert {"trials.json", "front.html", "environment.json"} <= artifacts
    pictures = {each.path for each in mlflow_store.list_artifacts(study.info.run_id, "pictures")}
    assert {"pictures/front.png", "pictures/history.png"} <= pictures
