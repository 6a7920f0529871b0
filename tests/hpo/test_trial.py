"""A trial is the correction that `-e unlearn` would make, and the same whoever runs it and when."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hpo.config import SearchConfig
from hpo.trial import TrialContext, final_evaluation, weights_of
from pipelines.engine.signals import StopSignal
from pipelines.engine.worker import Message, Pruned
from safemax import metric_keys as keys
from safemax.errors import Stopped
from safemax.storage import checkpoint
from safemax.training.trainer import Trainer
from tests.hpo.conftest import BuildSearch
from tests.support import tiny_models

VALUES: dict[str, Any] = {"lr": 1e-3, "lmbda": 2.0}


class StopAtThird(StopSignal):
    """Raised from the third time on that it is read."""

    asked = 0

    def __call__(self) -> bool:
        self.asked += 1
        return self.asked > 2


def ignore(message: Message) -> bool:
    return False


def context_of(config: SearchConfig, folder: Path, stop: StopSignal | None = None) -> TrialContext:
    return TrialContext(replace(config.trial_config(), folder=str(folder)), stop or StopSignal())


def values_of(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not name.startswith(keys.COST)}


def test_a_trial_is_the_correction_that_the_pipeline_would_make(
    hpo_cache: Path, tmp_path: Path, tiny_search: BuildSearch
) -> None:
    config = tiny_search()
    context = context_of(config, tmp_path)
    context.trial(0, VALUES, ignore)
    correction = config.correction({"lr": 1e-3, "lambda": 2.0}, config.evaluation)
    by_hand = tiny_models.diffusion()
    Trainer(
        by_hand,
        correction.method,
        correction.dataset.train,
        correction.forget,
        correction.training,
        flip=correction.dataset.natural,
        hooks=tiny_models.SILENT,
    ).fit()
    assert context.diffusion.digest() == by_hand.digest()


def test_a_class_that_the_base_forgot_earlier_is_neither_trained_on_nor_measured(
    hpo_cache: Path, tmp_path: Path, tiny_search: BuildSearch
) -> None:
    config = tiny_search()
    context = TrialContext(replace(config.trial_config(), folder=str(tmp_path), forgotten=["b"]), StopSignal())
    metrics = context.trial(0, VALUES, ignore)
    correction, by_hand = config.correction({"lr": 1e-3, "lambda": 2.0}, config.evaluation), tiny_models.diffusion()
    Trainer(
        by_hand,
        correction.method,
        correction.dataset.train.without((1,)),
        (0,),
        correction.training,
        hooks=tiny_models.SILENT,
    ).fit()
    assert context.diffusion.digest() == by_hand.digest()
    assert [key for key in metrics if key.endswith("accuracy_b")] == []
    assert [key for key in metrics if key.endswith("accuracy_c")] != []


def test_a_trial_does_not_affect_the_next_one(hpo_cache: Path, tmp_path: Path, tiny_search: BuildSearch) -> None:
    context = context_of(tiny_search(), tmp_path)
    first = context.trial(0, VALUES, ignore)
    context.trial(1, {"lr": 1e-2}, ignore)
    assert values_of(context.trial(2, VALUES, ignore)) == values_of(first)


def test_a_trial_whose_worker_was_killed_resumes_to_the_same_result(
    hpo_cache: Path, tmp_path: Path, tiny_search: BuildSearch
) -> None:
    config = tiny_search()
    whole = context_of(config, tmp_path / "whole").trial(0, VALUES, ignore)

    with pytest.raises(Stopped):
        context_of(config, tmp_path / "killed", StopAtThird()).trial(0, VALUES, ignore)
    again = context_of(config, tmp_path / "killed").trial(0, VALUES, ignore)
    assert values_of(again) == values_of(whole)
    assert again[keys.IMAGES_SEEN] == whole[keys.IMAGES_SEEN]


def test_a_trial_keeps_its_weights_and_a_picture_and_drops_its_checkpoints(
    hpo_cache: Path, tmp_path: Path, tiny_search: BuildSearch
) -> None:
    context = context_of(tiny_search(), tmp_path)
    context.trial(7, VALUES, ignore)
    weights = weights_of(context.config, 7, VALUES)
    assert all(torch.equal(value, weights[name]) for name, value in context.diffusion.denoiser.state_dict().items())
    assert (context.config.trial_folder(7, VALUES) / "samples.png").exists()
    assert checkpoint.newest(context.config.trial_folder(7, VALUES) / "steps") is None


def test_a_trial_of_another_study_of_the_same_name_does_not_affect_one_with_other_values(
    hpo_cache: Path, tmp_path: Path, tiny_search: BuildSearch
) -> None:
    other = {**VALUES, "lr": 1e-5}
    whole = context_of(tiny_search(), tmp_path / "whole").trial(0, other, ignore)

    with pytest.raises(Stopped):
        context_of(tiny_search(), tmp_path / "again", StopAtThird()).trial(0, VALUES, ignore)
    assert values_of(context_of(tiny_search(), tmp_path / "again").trial(0, other, ignore)) == values_of(whole)


def test_a_finished_trial_is_measured_again_with_its_weights_or_without(
    hpo_cache: Path, tmp_path: Path, tiny_search: BuildSearch
) -> None:
    config = tiny_search()
    context, more = context_of(config, tmp_path), final_evaluation(config.evaluation, 2)
    context.trial(0, VALUES, ignore)
    with_weights = context.measure_again(0, VALUES, more)
    shutil.rmtree(context.config.trial_folder(0, VALUES))
    assert context.measure_again(0, VALUES, more) == with_weights
    assert checkpoint.newest(context.config.trial_folder(0, VALUES) / "weights") is not None


def test_the_final_evaluation_has_other_seeds_and_more_samples(tiny_search: BuildSearch) -> None:
    evaluation = tiny_search().evaluation
    more = final_evaluation(evaluation, 3)
    assert more.counts == (3 * evaluation.counts[0], 3 * evaluation.counts[1])
    assert more.evaluation_seed != evaluation.evaluation_seed
    assert more.main_sampler == evaluation.main_sampler


def test_a_trial_reports_twice_and_ends_when_it_is_pruned(
    hpo_cache: Path, tmp_path: Path, tiny_search: BuildSearch
) -> None:
    percents = []

    def send(message: Message) -> bool:
        if message["kind"] != "report":
            return False
        percents.append(message["percent"])
        return message["percent"] == 75

    with pytest.raises(Pruned):
        context_of(tiny_search(prune=True), tmp_path).trial(0, VALUES, send)
    assert percents == [50, 75]
