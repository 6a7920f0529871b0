"""A trial is the correction that the pipeline would make, scored against the base, and the same whoever runs it and when."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hpo import objective
from hpo.objective import Probe, Pruned, TrialContext, scores
from safemax.errors import Stopped
from safemax.evaluation.measure import Evaluation
from safemax.methods import create
from safemax.storage import checkpoint
from safemax.training.trainer import Training, fit
from tests.hpo.conftest import Build
from tests.support import tiny_models

VALUES: dict[str, Any] = {"lr": 1e-3, "lmbda": 2.0}
BASE = {
    "forget/probability": 0.9,
    "forget/ua_reject": 10.0,
    "retain/accuracy": 99.0,
    "retain/fid_judge": 8.0,
    "retain/kid": 40.0,
}


def silent(metrics: dict[str, float], step: int) -> None:
    pass


def never(percent: int, knowledge: float, damage: float) -> bool:
    return False


def bench(request: Any, folder: Path, stop: Any = lambda: False) -> TrialContext:
    task = request.task()
    return TrialContext(objective.TrialConfig(**{**task.__dict__, "folder": str(folder)}), stop)


def values_of(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not name.startswith("cost/")}


@pytest.mark.parametrize("of_base", [0.0, -0.02, 0.1])
def test_a_kid_that_is_lost_counts_in_units_of_the_bases_error_where_the_base_has_none_to_speak_of(
    of_base: float,
) -> None:
    base = {**BASE, "retain/kid": of_base, "retain/kid_se": 0.25}
    intact, ruined = (scores({**base, "retain/kid": of_base + lost}, base, "kid") for lost in (0.0, 50.0))
    assert intact["joint_quality"] == 0
    assert ruined["joint_quality"] == pytest.approx(50 / 0.25)


def test_scores_are_what_the_issue_states() -> None:
    after = {
        **BASE,
        "forget/probability": 0.2,
        "forget/ua_reject": 75.0,
        "retain/accuracy": 97.5,
        "retain/fid_judge": 12.0,
    }
    found = scores(after | {"cost/setup_minutes": 0.5, "cost/runtime_minutes": 1.0}, BASE, "fid")
    # (100 - 75) / 100 + max(0, 12 / 8 - 1) = 0.25 + 0.5
    terms = {"joint": 0.75, "joint_forgetting": 0.25, "joint_quality": 0.5}
    assert found == {"forgetting": 0.2, "quality": 4.0, **terms, "accuracy_drop": 1.5, "minutes": 1.5}


def test_probabilities_of_less_than_a_millionth_are_all_the_same() -> None:
    found = [scores({**BASE, "forget/probability": p}, BASE, "fid")["forgetting"] for p in (0.0, 1e-9, 1e-6, 1e-5)]
    assert found == [1e-6, 1e-6, 1e-6, 1e-5]


def test_a_better_quality_than_the_bases_is_not_rewarded_in_the_joint_score() -> None:
    assert scores({**BASE, "retain/kid": 30.0}, BASE, "kid")["joint"] == pytest.approx(0.9)
    assert scores({**BASE, "retain/kid": 30.0}, BASE, "kid")["quality"] == -10.0


def test_the_probe_finds_all_knowledge_and_no_damage_in_the_base() -> None:
    diffusion, data = tiny_models.diffusion(), tiny_models.dataset()
    fit(diffusion, create("finetune"), data.train, (), Training(60, 32, forget_share=0, lr=3e-3), progress=False)
    probe = Probe(diffusion, data, [0], seed=0)
    assert probe(diffusion) == (1.0, 0.0)


def test_the_probe_sees_what_unlearning_does() -> None:
    diffusion, data = tiny_models.diffusion(), tiny_models.dataset()
    fit(diffusion, create("finetune"), data.train, (), Training(60, 32, forget_share=0, lr=3e-3), progress=False)
    probe = Probe(diffusion, data, [0], seed=0)
    fit(
        diffusion,
        create("gradient_ascent"),
        data.train,
        (0,),
        Training(20, 32, forget_share=1, lr=3e-3),
        progress=False,
    )
    knowledge, damage = probe(diffusion)
    assert knowledge < 0.5
    assert damage > 0.1


def test_the_probe_leaves_the_mode_of_the_model_and_its_generators_alone() -> None:
    diffusion = tiny_models.diffusion().train()
    probe = Probe(diffusion, tiny_models.dataset(), [0], seed=0)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    probe(diffusion)
    assert torch.equal(torch.rand(3), expected)
    assert diffusion.training


def test_a_trial_is_what_the_pipeline_would_make_of_it(hpo_cache: Path, tmp_path: Path, tiny_request: Build) -> None:
    request = tiny_request()
    made = bench(request, tmp_path)
    made.trial(0, VALUES, silent, never)
    asked = request.correction({"lr": 1e-3, "lambda": 2.0}, request.evaluation)
    by_hand = tiny_models.diffusion()
    fit(
        by_hand,
        asked.method,
        asked.dataset.train,
        asked.forget,
        asked.training,
        flip=asked.dataset.natural,
        progress=False,
    )
    assert made.diffusion.digest() == by_hand.digest()


def test_a_class_that_the_base_forgot_earlier_is_neither_trained_on_nor_measured(
    hpo_cache: Path, tmp_path: Path, tiny_request: Build
) -> None:
    request = tiny_request()
    made = TrialContext(replace(request.task(), folder=str(tmp_path), earlier=[1]), lambda: False)
    metrics = made.trial(0, VALUES, silent, never)
    asked, by_hand = request.correction({"lr": 1e-3, "lambda": 2.0}, request.evaluation), tiny_models.diffusion()
    fit(by_hand, asked.method, asked.dataset.train.without((1,)), (0,), asked.training, progress=False)
    assert made.diffusion.digest() == by_hand.digest()
    assert [key for key in metrics if key.endswith("accuracy_b")] == []
    assert [key for key in metrics if key.endswith("accuracy_c")] != []


def test_a_trial_leaves_nothing_to_the_next_one(hpo_cache: Path, tmp_path: Path, tiny_request: Build) -> None:
    made = bench(tiny_request(), tmp_path)
    first = made.trial(0, VALUES, silent, never)
    made.trial(1, {"lr": 1e-2}, silent, never)
    assert values_of(made.trial(2, VALUES, silent, never)) == values_of(first)


def test_a_trial_whose_worker_was_killed_goes_on_to_the_same_result(
    hpo_cache: Path, tmp_path: Path, tiny_request: Build
) -> None:
    request, asked = tiny_request(), []
    whole = bench(request, tmp_path / "whole").trial(0, VALUES, silent, never)

    def stop() -> bool:
        asked.append(1)
        return len(asked) > 2

    with pytest.raises(Stopped):
        bench(request, tmp_path / "killed", stop).trial(0, VALUES, silent, never)
    again = bench(request, tmp_path / "killed").trial(0, VALUES, silent, never)
    assert values_of(again) == values_of(whole)
    assert again["cost/images_seen"] == whole["cost/images_seen"]


def test_a_trial_keeps_its_weights_and_a_picture_and_drops_its_checkpoints(
    hpo_cache: Path, tmp_path: Path, tiny_request: Build
) -> None:
    made = bench(tiny_request(), tmp_path)
    made.trial(7, VALUES, silent, never)
    weights = objective.weights_of(made.task, 7, VALUES)
    assert all(torch.equal(value, weights[name]) for name, value in made.diffusion.denoiser.state_dict().items())
    assert (made.task.place(7, VALUES) / "samples.png").exists()
    assert checkpoint.newest(made.task.place(7, VALUES) / "steps") is None


def test_a_trial_of_another_study_of_the_same_name_leaves_nothing_to_one_with_other_values(
    hpo_cache: Path, tmp_path: Path, tiny_request: Build
) -> None:
    other = {**VALUES, "lr": 1e-5}
    whole = bench(tiny_request(), tmp_path / "whole").trial(0, other, silent, never)
    asked: list[int] = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) > 2

    with pytest.raises(Stopped):
        bench(tiny_request(), tmp_path / "again", stop).trial(0, VALUES, silent, never)
    assert values_of(bench(tiny_request(), tmp_path / "again").trial(0, other, silent, never)) == values_of(whole)


def test_a_finished_trial_is_measured_again_with_its_weights_or_without(
    hpo_cache: Path, tmp_path: Path, tiny_request: Build
) -> None:
    request = tiny_request()
    made, more = bench(request, tmp_path), Evaluation(**objective.settings(request.evaluation, 2))
    made.trial(0, VALUES, silent, never)
    with_weights = made.again(0, VALUES, more)
    shutil.rmtree(made.task.place(0, VALUES))
    assert made.again(0, VALUES, more) == with_weights
    assert checkpoint.newest(made.task.place(0, VALUES) / "weights") is not None


def test_the_final_evaluation_has_other_seeds_and_more_samples(tiny_request: Build) -> None:
    evaluation = tiny_request().evaluation
    more = Evaluation(**objective.settings(evaluation, 3))
    assert more.counts == (3 * evaluation.counts[0], 3 * evaluation.counts[1])
    assert more.evaluation_seed != evaluation.evaluation_seed
    assert more.main_sampler == evaluation.main_sampler


def test_a_trial_reports_on_its_way_and_ends_when_it_is_given_up(
    hpo_cache: Path, tmp_path: Path, tiny_request: Build
) -> None:
    made, heard = bench(tiny_request(prune=True), tmp_path), []

    def report(percent: int, knowledge: float, damage: float) -> bool:
        heard.append(percent)
        return percent == 75

    with pytest.raises(Pruned):
        made.trial(0, VALUES, silent, report)
    assert heard == [50, 75]
