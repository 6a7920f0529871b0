"""What workers do ahead for several models is what each examination would have done, and what models share is done once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.cli.options import DataOptions
from pipelines.correction.retrained import GoldOptions
from pipelines.engine.options import WorkerOptions
from pipelines.engine.signals import StopSignal
from pipelines.examination.attack_suite import AttackSuite, Clock, Models
from pipelines.examination.evaluation import Evaluator
from pipelines.examination.fan_out import Folders, attacks_on, each_named, measurements, prepare
from pipelines.examination.subject import Subject
from pipelines.registry import lineage
from safemax import attacks
from safemax.data.class_split import ClassSplit
from safemax.errors import InputError
from safemax.evaluation.protocol import Evaluation
from safemax.judges.config import JudgeConfig
from tests.support import tiny_models

JUDGING = JudgeConfig(judge_steps=5, reject_judges=1)
EVALUATION = Evaluation(
    protocol="custom", sampler_steps=2, forget_samples=6, retain_samples=6, second_samples=5, user_samples=0
)
NO_GOLD = GoldOptions(gold="none")
Find = Callable[[str], Subject]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataOptions:
    tiny_models.write_images(tmp_path / "tiny")
    for seed, name in enumerate(("base", "one", "two")):
        tiny_models.diffusion(seed=seed).save(tmp_path / name)
    monkeypatch.setenv("SAFEMAX_CACHE", str(tmp_path / "cache"))
    return DataOptions(data=str(tmp_path / "tiny"))


@pytest.fixture
def subject(data: DataOptions, tmp_path: Path) -> Find:
    dataset = data.load(quiet=True)
    split = ClassSplit.of(dataset.class_names, (0,))
    return lambda name: Subject(str(tmp_path / name), str(tmp_path / "base"), dataset, split, "tiny")


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_measurements_and_attacks_done_ahead_are_those_of_each_model_alone(
    data: DataOptions, subject: Find, workers: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    options, stop, subjects = WorkerOptions(workers=workers), StopSignal(), [subject("one"), subject("two")]
    suite = AttackSuite({"weights": attacks.find("weights")()}, 10, 0)
    folders = [Folders.of(each, NO_GOLD, options, like_base=True) for each in subjects]
    both = [
        (each, measurements(each, EVALUATION, place) | attacks_on(each, suite, place))
        for each, place in zip(subjects, folders, strict=True)
    ]
    ahead = prepare(options, data, JUDGING, both, stop)
    assert len({*ahead[0].results}) == 6  # base, one and two: a measurement and an attack each
    for each, done in zip(subjects, ahead, strict=True):
        done.raise_failure()
        assert done.metrics().keys() == {each.address, each.base}
    kept = {each: each.stat().st_mtime_ns for each in (tmp_path / "cache" / "attacks").iterdir()}
    for each in subjects:
        assert (
            suite.run(
                Models.load(each, lineage.load(each.address, each.dataset), NO_GOLD, stop, Clock()),
                each,
                JUDGING,
                Clock(),
            )["weights"].base
            is not None
        )
    assert {each: each.stat().st_mtime_ns for each in (tmp_path / "cache" / "attacks").iterdir()} == kept
    monkeypatch.setenv("SAFEMAX_CACHE", str(tmp_path / "alone"))
    for each, done in zip(subjects, ahead, strict=True):
        diffusion = lineage.load(each.address, each.dataset)
        alone = Evaluator.load(each, diffusion, EVALUATION, JUDGING, NO_GOLD, stop)
        done.refuse_other_judges(alone.judges)
        with pytest.raises(InputError, match="was measured by judges that this machine does not have; give judge"):
            done.refuse_other_judges(replace(alone.judges, digest="other"))
        assert alone.measure(each.address, diffusion).metrics == pytest.approx(
            done.metrics()[each.address], rel=1e-6, nan_ok=True
        )


def test_a_failed_job_is_the_failure_of_the_models_that_need_it(data: DataOptions, subject: Find) -> None:
    one, two = subject("one"), subject("two")
    parts = [
        measurements(each, EVALUATION, Folders.of(each, NO_GOLD, WorkerOptions(), like_base=False))
        for each in (one, two)
    ]
    parts[0][one.address]["model"] = "/nowhere"
    ahead = prepare(WorkerOptions(), data, JUDGING, [(one, parts[0]), (two, parts[1])], StopSignal())
    with pytest.raises(InputError, match="/nowhere"):
        ahead[0].raise_failure()
    ahead[1].raise_failure()


def test_all_models_are_examined_and_those_that_fail_are_named() -> None:
    seen = []

    def examine(place: int) -> None:
        seen.append(place)
        if place == 1:
            raise InputError("broken")

    with pytest.raises(InputError, match="failed models: 1 of 3, the first: b: broken"):
        each_named(["a", "b", "c"], examine)
    assert seen == [0, 1, 2]
    with pytest.raises(InputError, match="^broken$"):
        each_named(["b"], lambda place: examine(1))
