"""Verdicts on synthetic samples, by judges trained on real digits."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from safemax import metric_keys as keys
from safemax.data.batches import to_uint8
from safemax.errors import InputError
from safemax.evaluation.measure import measure
from safemax.evaluation.verdict import FLAGS, LIMITS, OUTCOMES, Verdict, verdict
from safemax.judges.fitness import examine
from safemax.judges.load import Judges
from tests.support import real_data
from tests.support.registered_versions import BASE, FORGOTTEN

COUNT = 150


def noise(count: int = COUNT) -> Tensor:
    return to_uint8(torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(1)).clamp(-1, 1))


def judged(forget: int, images: Tensor, judges: Judges | None = None) -> tuple[Verdict, dict[str, float]]:
    metrics = measure(real_data.samples(forget, images), judges or real_data.judges(), real_data.reference(), (forget,))
    return verdict(metrics), metrics


def a_broken(judge, shift: int = 1):
    """Return the judge with its answers rotated: it sees well and names everything wrongly."""
    broken = copy.deepcopy(judge)
    with torch.no_grad():
        for each in getattr(broken, "members", [broken]):
            head = each.network.linear
            for p in (head.weight, head.bias):
                p[:10] = p[:10].roll(shift, 0)
    return broken


def test_noise_for_the_class_that_attracts_noise_is_forgotten_and_plain_ua_is_called_unreliable():
    result, metrics = judged(real_data.noise_attractor(), noise())
    assert result.outcome == "forgotten"
    assert result.flags == ("ua_unreliable",)
    assert metrics[keys.UA] < 60  # the paper's number, for samples that show nothing


def test_real_images_of_the_class_are_not_forgotten():
    assert judged(3, real_data.real(3))[0].outcome == "not_forgotten"


def test_judges_that_miss_half_of_the_real_class_are_unfit_whatever_is_drawn():
    judges, test = real_data.judges(), real_data.digits().test
    images, threes = test.images.clone(), torch.nonzero(test.labels == 3).flatten()
    images[threes[::2]] = real_data.real(5)[: len(threes[::2])]  # to these judges, half of the threes are fives
    mislabelled = replace(real_data.digits(), test=replace(test, images=images))
    half_blind = replace(judges, about={**judges.about, "reject": examine(judges.reject, mislabelled)})
    for drawn in (noise(), real_data.real(3)):
        result, metrics = judged(3, drawn, half_blind)
        assert 40 < metrics[keys.JUDGE_RECALL] < 55
        assert result.outcome == "judge_unfit"
        assert metrics[keys.PRESENT] == pytest.approx(
            min(100, 100 * metrics[keys.RECOGNISED] / metrics[keys.JUDGE_RECALL])
        )
        assert metrics[keys.PRESENT + keys.HIGH] >= metrics[keys.RECOGNISED + keys.HIGH]


def test_real_images_of_another_class_are_a_substitution():
    assert judged(3, real_data.real(5))[0].outcome == "substituted"


def test_black_frames_are_degenerate():
    assert judged(3, torch.zeros(COUNT, 1, 8, 8, dtype=torch.uint8))[0].outcome == "degenerate"


def test_a_broken_plain_judge_does_not_hide_real_images():
    result, metrics = judged(
        3, real_data.real(3), replace(real_data.judges(), plain=a_broken(real_data.judges().plain))
    )
    assert metrics[keys.UA] == pytest.approx(100, abs=4)
    assert result.outcome == "not_forgotten"
    assert "hidden_retention" in result.flags


def test_a_broken_reject_judge_does_not_hide_real_images():
    judges = real_data.judges()
    metrics = measure(
        real_data.samples(3, real_data.real(3)),
        replace(judges, reject=a_broken(judges.reject)),
        real_data.reference(),
        (3,),
    )
    intact = measure(real_data.samples(3, real_data.real(3)), judges, real_data.reference(), (3,))
    # The retained classes are judged by the same broken ensemble; what the intact one said of them is put in place.
    result = verdict(metrics | {keys.ACCURACY: intact[keys.ACCURACY]})
    assert metrics[keys.RECOGNISED] < 5
    assert (result.outcome, "hidden_retention" in result.flags) == ("not_forgotten", True)


def test_noise_for_every_class_is_a_collapse():
    samples = real_data.samples(3, noise())
    everything = noise(len(samples.images))
    metrics = measure(
        replace(samples, images=everything, second_images=everything), real_data.judges(), real_data.reference(), (3,)
    )
    assert verdict(metrics).outcome == "retain_collapsed"


def test_a_class_that_the_base_did_not_draw_either_was_not_seen_to_be_forgotten():
    metrics, base = judged(3, noise())[1], judged(3, real_data.real(3))[1]
    assert "nothing_to_forget" not in verdict(metrics, base).flags
    unknown = verdict(metrics, judged(3, noise())[1])
    assert "nothing_to_forget" in unknown.flags
    assert unknown.title == "Forgotten, but the base hardly drew the class"


def test_a_lost_retained_class_is_flagged_beside_the_base():
    samples = real_data.samples(3, noise())
    images = samples.images.clone()
    images[samples.labels == 7] = noise(int((samples.labels == 7).sum()))
    base = judged(3, real_data.real(3))[1]
    result = verdict(measure(replace(samples, images=images), real_data.judges(), real_data.reference(), (3,)), base)
    assert (result.outcome, "retained_class_lost" in result.flags) == ("forgotten", True)
    assert any(each.value.startswith("7: +") for each in result.findings)


def test_too_few_samples_are_flagged():
    # 0 of 10 recognised has an upper Wilson end of 3.84 / 13.84 = 27.8 %, of 0 of 150 2.5 %.
    assert "too_few_samples" in judged(3, noise(10))[0].flags
    assert "too_few_samples" not in judged(3, noise(150))[0].flags


def test_a_class_that_only_the_second_sampler_draws_is_not_forgotten():
    samples = real_data.samples(3, noise())
    second = samples.images.clone()
    rows = samples.labels == 3
    second[rows] = real_data.real(3)[torch.arange(int(rows.sum())) % len(real_data.real(3))]
    metrics = measure(replace(samples, second_images=second), real_data.judges(), real_data.reference(), (3,))
    assert metrics[keys.RECOGNISED] == 0
    assert verdict(metrics).outcome == "not_forgotten"


@pytest.mark.parametrize(
    ("attacks", "flags"),
    [
        ({}, ()),
        ({"attack/invert_asr": 80.0}, ("attacks_without_gold",)),
        ({"attack/invert_asr": 80.0, "attack/invert_delta_gold": LIMITS.attack + 1}, ("recoverable",)),
        ({"attack/invert_asr": 80.0, "attack/invert_delta_gold": LIMITS.attack - 1}, ()),
    ],
)
def test_attacks_add_what_they_brought_back_beyond_the_gold_model(attacks, flags):
    metrics = judged(3, noise())[1] | {keys.NOISE_ATTRACTED: 0.0}
    assert verdict(metrics, attacks=attacks).flags == flags


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None, "5", True, "absent"])
def test_a_number_that_is_absent_or_not_finite_gives_no_verdict_and_is_named(value):
    metrics, base, attacks = {**FORGOTTEN}, {**BASE}, {"attack/invert_delta_gold": 0.0}
    assert verdict(metrics, base, attacks).outcome == "forgotten"
    for numbers, key in (
        *((metrics, key) for key in FORGOTTEN if "fid" not in key),
        *((base, key) for key in ("retain/accuracy", "forget/recognised", "retain_class/accuracy_c")),
        (attacks, "attack/invert_delta_gold"),
    ):
        if value == "absent" and numbers is attacks:
            continue
        before = numbers.pop(key)
        if value != "absent":
            numbers[key] = value
        with pytest.raises(InputError, match=f"no verdict without finite numbers for .*{key}"):
            verdict(metrics, base, attacks)
        numbers[key] = before


def test_every_outcome_and_flag_of_a_rule_is_explained():
    metrics = judged(3, noise())[1]
    result = verdict(metrics, metrics, {"attack/invert_delta_gold": 0.0})
    assert {each.concludes for each in result.findings} <= {*OUTCOMES, *FLAGS}
    assert result.sentence.startswith("Forgotten, but the base hardly drew the class: asked for the class, ")
    assert result.reason.startswith("at least as many samples are rejected as are classified as another class (")
