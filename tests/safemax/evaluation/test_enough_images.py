"""Too few images of a class are refused before the work, at the count where the metrics would refuse them after it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from safemax.data.class_split import ClassSplit
from safemax.data.dataset import Dataset, Split
from safemax.errors import InputError
from safemax.evaluation.enough_images import check_enough_images, check_enough_samples
from safemax.evaluation.measure import measure
from safemax.evaluation.protocol import Evaluation
from safemax.evaluation.samples import draw
from safemax.evaluation.verdict import verdict
from safemax.judges.config import JudgeConfig
from safemax.judges.load import judges
from safemax.judges.reference import reference
from safemax.metrics.kid import kid
from safemax.metrics.precision_coverage import precision_coverage
from tests.support import tiny_models


def data(*counts: int) -> Dataset:
    """Return data with so many images of the classes a, b, c."""
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    split = Split(torch.zeros(len(labels), 1, 4, 4, dtype=torch.uint8), labels)
    return Dataset.of("few", split, split, "abc"[: len(counts)])


@pytest.mark.parametrize(("counts", "forget"), [((6, 4, 4), (0,)), ((3, 3, 4), (0, 1))])
def test_as_many_as_the_metrics_need_are_enough(counts: tuple[int, ...], forget: tuple[int, ...]) -> None:
    check_enough_images(data(*counts), forget)


@pytest.mark.parametrize(
    ("counts", "forget", "words"),
    [
        ((6, 3, 4), (0,), "KID needs 4 of each: b has 3"),
        ((6, 3, 0), (0,), "b has 3, c has 0"),
        ((5, 4, 4), (0,), "forget = a has 5; precision needs 6"),
        ((3, 2, 4), (0, 1), "forget = a, b has 5"),
    ],
)
def test_too_few_are_named_with_their_counts(counts: tuple[int, ...], forget: tuple[int, ...], words: str) -> None:
    with pytest.raises(InputError, match="data = few has too few training images") as refused:
        check_enough_images(data(*counts), forget)
    assert words in str(refused.value)


def test_the_limits_are_those_of_the_metrics() -> None:
    rows = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    kid(rows[:4], rows)
    precision_coverage(rows, rows)
    for call in (lambda: kid(rows[:3], rows), lambda: precision_coverage(rows[:5], rows)):
        with pytest.raises(InputError):
            call()


TWO = ClassSplit(forget=(0, 2), forgotten_earlier=(), retained=(1,))
ONE = ClassSplit(forget=(1,), forgotten_earlier=(), retained=(0, 2))
LAST = ClassSplit(forget=(2,), forgotten_earlier=(1,), retained=(0,))
FEWEST_SAMPLES: list[tuple[ClassSplit, dict[str, Any]]] = [
    (TWO, {"forget_samples": 4, "retain_samples": 4, "second_samples": 2}),
    (ONE, {"forget_samples": 4, "retain_samples": 2, "second_samples": 1}),
    (LAST, {"forget_samples": 4, "retain_samples": 4, "second_samples": 1}),
]


@pytest.mark.parametrize(("classes", "fewest"), FEWEST_SAMPLES)
def test_every_metric_exists_of_the_fewest_samples(
    classes: ClassSplit, fewest: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAFEMAX_CACHE", str(tmp_path))
    evaluation = Evaluation("custom", sampler_steps=1, user_samples=1, **fewest)
    check_enough_samples(evaluation, classes, "abc")
    data, diffusion = tiny_models.dataset(), tiny_models.diffusion()
    classifiers = judges(data, JudgeConfig(judge_steps=5, reject_judges=1), progress=False)
    scaled: dict[str, Any] = {
        name: classes.scaled(fewest[name]) for name in ("forget_samples", "second_samples")
    }  # as a correction draws
    drawn = draw(diffusion, classes.all_forgotten, replace(evaluation, **scaled), progress=False)
    real = classes.counted(reference(data, classifiers))
    metrics = measure(classes.counted(drawn), classifiers, real, classes.forget)
    assert verdict(metrics).outcome


@pytest.mark.parametrize(("classes", "fewest"), FEWEST_SAMPLES)
@pytest.mark.parametrize("name", ["forget_samples", "retain_samples", "second_samples"])
def test_one_sample_less_is_refused_by_its_name(classes: ClassSplit, fewest: dict[str, Any], name: str) -> None:
    less: dict[str, Any] = {**fewest, name: fewest[name] - 1}
    if not less[name]:
        pytest.skip("0 takes the protocol's number, or is beyond the bounds of the knob")
    with pytest.raises(InputError, match=f"^{name} = {less[name]} is not allowed.*{fewest[name]} or more"):
        check_enough_samples(Evaluation("custom", sampler_steps=1, **less), classes, "abc")


def test_the_protocols_numbers_are_enough_but_for_no_retained_class() -> None:
    for name in ("fast", "paper"):
        check_enough_samples(Evaluation(name), TWO, "abc")
    with pytest.raises(
        InputError,
        match="forget leaves no drawn class to retain: all the others were forgotten earlier",
    ):
        check_enough_samples(Evaluation(), ClassSplit(forget=(0,), forgotten_earlier=(1,), retained=()), "ab")
