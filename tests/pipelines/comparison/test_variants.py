"""Methods, variants and overrides are read strictly."""

from __future__ import annotations

import pytest

from pipelines.comparison.variants import read
from safemax.errors import InputError
from safemax.methods import available, knobs_of


def test_each_variant_has_its_own_training_where_none_is_given() -> None:
    safemax, salun, ascent = read("safemax,salun,gradient_ascent", "", {})
    assert (safemax.training.batch_size, salun.training.batch_size) == (128, 256)
    assert (ascent.training.steps, ascent.training.lr) == (100, 1e-5)


def test_common_knobs_reach_all_and_an_override_takes_precedence() -> None:
    safemax, salun = read("safemax,salun", "salun.steps=7,salun.mask_ratio=0.3,safemax.lambda=2", {"steps": 300})
    assert (safemax.training.steps, salun.training.steps) == (300, 7)
    assert (knobs_of(safemax.method)["lambda"], knobs_of(salun.method)["mask_ratio"]) == (2.0, 0.3)


def test_a_closed_form_takes_no_steps_even_where_steps_are_common() -> None:
    (ssd,) = read("ssd", "", {"steps": 300})
    assert ssd.training.steps == 0


def test_a_variant_has_knobs_of_its_own() -> None:
    plain, zero = read("safemax,safemax@zero", "safemax@zero.target=zero", {})
    assert (knobs_of(plain.method)["target"], knobs_of(zero.method)["target"]) == ("independent", "zero")
    assert (zero.label, zero.name) == ("safemax@zero", "safemax")


def test_all_is_every_method_that_is_not_named_except_the_gold_standard() -> None:
    labels = [each.label for each in read("salun,safemax@zero,all", "", {})]
    assert labels[:2] == ["salun", "safemax@zero"]
    assert sorted(labels) == sorted([*(set(available()) - {"retrain"}), "safemax@zero"])


def test_a_knob_takes_precedence_over_a_preset() -> None:
    (plain,) = read("selective_amnesia", "selective_amnesia.preset=paper,selective_amnesia.fisher_images=20", {})
    knobs = knobs_of(plain.method)
    assert (knobs["pixel_sum"], knobs["fisher_images"]) == (True, 20)


@pytest.mark.parametrize(
    ("methods", "overrides", "line"),
    [
        ("safemx", "", "unknown method 'safemx'.*did you mean 'safemax'"),
        ("safemax,", "", "unknown method ''"),
        ("safemax,safemax", "", "has a duplicate"),
        ("safemax", "salun.lr=1", "unknown method of overrides 'salun'"),
        ("safemax", "safemax.lamda=1", "unknown knob of safemax 'lamda'.*did you mean 'lambda'"),
        ("safemax", "safemax.lmbda=1", "unknown knob of safemax 'lmbda'"),
        ("safemax", "safemax.seed=1", "unknown knob of safemax 'seed'"),
        ("safemax", "safemax.lambda=-1", "lambda = -1 is not allowed"),
        ("safemax", "safemax.lambda=", "lambda has no value"),
        ("safemax", "safemax.lambda", "write METHOD.KNOB=VALUE"),
        ("safemax", "lambda=1", "write METHOD.KNOB=VALUE"),
        ("safemax", "safemax.lr=1,safemax.lr=2", "given twice"),
        ("safemax", "safemax.preset=mine", "unknown preset of safemax 'mine'"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(methods: str, overrides: str, line: str) -> None:
    with pytest.raises(InputError, match=line) as caught:
        read(methods, overrides, {})
    assert "\n" not in str(caught.value)
