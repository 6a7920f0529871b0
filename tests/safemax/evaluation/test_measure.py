"""The panel on samples whose numbers can be predicted: real images, noise, another class."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from safemax import metric_keys as keys
from safemax.data.batches import to_uint8
from safemax.evaluation.measure import measure, recognised
from safemax.metrics.intervals import wilson
from tests.support import real_data


def measured(forget: int, images: torch.Tensor, **given) -> dict[str, float]:
    return measure(real_data.samples(forget, images), real_data.judges(), real_data.reference(), (forget,), **given)


def noise(count: int = 150) -> torch.Tensor:
    return to_uint8(torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(1)).clamp(-1, 1))


@pytest.fixture(scope="module")
def panel() -> dict[str, dict[str, float]]:
    return {
        "real": measured(3, real_data.real(3)),
        "noise": measured(3, noise()),
        "other": measured(3, real_data.real(5)),
    }


def test_the_outcome_triple_adds_up_and_tells_the_three_cases_apart(panel):
    for name, share in (("real", "recognised"), ("noise", "rejected"), ("other", "other")):
        m = panel[name]
        assert m[keys.RECOGNISED] + m[keys.REJECTED] + m[keys.OTHER] == pytest.approx(100)
        assert m[keys.UA_REJECT] == pytest.approx(100 - m[keys.RECOGNISED])
        assert m[f"forget/{share}"] > 90


def test_shares_have_wilson_intervals(panel):
    m, n = panel["noise"], 150
    assert (m[keys.REJECTED + keys.LOW], m[keys.REJECTED + keys.HIGH]) == wilson(round(n * m[keys.REJECTED] / 100), n)
    for name in ("ua", "ua_reject", "recognised", "rejected", "other", "precision", "coverage"):
        assert m[f"forget/{name}_low"] <= m[f"forget/{name}"] <= m[f"forget/{name}_high"]
    assert m[keys.ACCURACY + keys.LOW] <= m[keys.ACCURACY] <= m[keys.ACCURACY + keys.HIGH]


def test_precision_coverage_and_normalised_kid_place_the_samples_between_the_class_and_noise(panel):
    assert panel["real"][keys.PRECISION] > 0.7
    assert panel["noise"][keys.PRECISION] < 0.1
    assert panel["other"][keys.PRECISION] < 0.1
    assert panel["real"][keys.KID_NORMALISED] == pytest.approx(0, abs=0.1)
    assert panel["noise"][keys.KID_NORMALISED] == pytest.approx(1, abs=0.1)


def test_retention_is_measured_class_by_class_and_a_lost_class_shows_in_its_own_numbers():
    samples = real_data.samples(3, noise())
    rows = samples.labels == 7
    spoilt = samples.images.clone()
    spoilt[rows] = noise(int(rows.sum()))
    intact, lost = measured(3, noise()), None
    lost = measure(replace(samples, images=spoilt), real_data.judges(), real_data.reference(), (3,))
    for k in (0, 1, 2, 4, 5, 6, 8, 9):
        assert lost[f"retain_class/accuracy_{k}"] == intact[f"retain_class/accuracy_{k}"]
        assert lost[f"retain_class/fid_{k}"] == pytest.approx(intact[f"retain_class/fid_{k}"])
    assert lost["retain_class/accuracy_7"] < 10
    assert lost["retain_class/fid_7"] > 3 * intact["retain_class/fid_7"]
    assert lost["retain_class/kid_7"] > intact["retain_class/kid_7"] + 3 * lost["retain_class/kid_se_7"]
    assert not any(name.endswith("_3") and name.startswith(keys.RETAIN_CLASS) for name in intact)


def test_classes_of_a_handful_of_images_have_an_accuracy_and_no_kid():
    # 20 forget images, and 3 of each retained class: KID needs 4
    samples = real_data.samples(3, noise(20))
    rows = torch.cat([(samples.labels == k).nonzero()[: 20 if k == 3 else 3, 0] for k in range(10)])
    few = measure(
        replace(samples, images=samples.images[rows], labels=samples.labels[rows]),
        real_data.judges(),
        real_data.reference(),
        (3,),
    )
    assert "retain_class/accuracy_7" in few
    assert "retain_class/kid_7" not in few


def test_the_gap_to_a_gold_model_is_nothing_for_the_model_itself_and_large_for_another():
    own = real_data.samples(3, real_data.real(5))
    same = measured(3, real_data.real(5), gold=own)
    apart = measured(3, noise(len(real_data.real(5))), gold=own)
    assert same[keys.GOLD_ANSWERS_JS] == 0
    assert apart[keys.GOLD_ANSWERS_JS] == pytest.approx(
        0.693, abs=0.05
    )  # ln 2: all rejected against all taken for another
    assert apart[keys.GOLD_KID_FORGET] > 10 * abs(same[keys.GOLD_KID_FORGET])
    assert apart[keys.GOLD_KID_RETAIN] == pytest.approx(same[keys.GOLD_KID_RETAIN])


def test_black_frames_are_counted_and_pictures_are_not(panel):
    assert measured(3, torch.zeros(50, 1, 8, 8, dtype=torch.uint8))[keys.CONSTANT] == 100
    assert panel["real"][keys.CONSTANT] == panel["noise"][keys.CONSTANT] == 0


def test_the_second_sampler_has_its_own_numbers():
    samples = real_data.samples(3, noise())
    rows = samples.labels == 3
    second = samples.images.clone()
    second[rows] = real_data.real(3)[torch.arange(int(rows.sum())) % len(real_data.real(3))]
    m = measure(replace(samples, second_images=second), real_data.judges(), real_data.reference(), (3,))
    assert m[keys.RECOGNISED] < 5
    assert m[keys.SECOND_RECOGNISED] > 90
    assert m[keys.SECOND_PRECISION] > 0.7
    assert m[keys.SECOND_UA_REJECT] == pytest.approx(100 - m[keys.SECOND_RECOGNISED])


def test_means_have_standard_errors_and_the_second_sampler_intervals(panel):
    m, n = panel["noise"], 150
    assert 0 < m[keys.ENTROPY + keys.SE] < 0.5 * m[keys.ENTROPY]
    # KID is shifted and scaled to its place between two fixed references, and its error scaled with it
    scale = m[keys.KID_NOISE] - m[keys.KID_REAL]
    assert m[keys.KID_NORMALISED + keys.SE] == pytest.approx(m[keys.KID + keys.SE] / scale)
    rejected = round(n * m[keys.SECOND_REJECT] / 100)
    assert (m[keys.SECOND_REJECT + keys.LOW], m[keys.SECOND_REJECT + keys.HIGH]) == wilson(rejected, n)
    assert m[keys.SECOND_PRECISION + keys.LOW] <= m[keys.SECOND_PRECISION] <= m[keys.SECOND_PRECISION + keys.HIGH]


def test_a_class_that_was_forgotten_earlier_counts_neither_as_forgotten_nor_as_retained():
    samples, real_images = real_data.samples(3, noise()), real_data.reference()
    spoilt = samples.images.clone()
    spoilt[samples.labels == 5] = 0  # an earlier correction's: black frames
    samples = replace(samples, images=spoilt)
    whole = measure(samples, real_data.judges(), real_images, (3,))
    m = measure(samples.without((5,)), real_data.judges(), real_images.without((5,)), (3,))
    assert m[keys.RECOGNISED] == whole[keys.RECOGNISED]
    assert "retain_class/accuracy_5" not in m
    assert m[keys.ACCURACY] > 95 > whole[keys.ACCURACY]  # about a ninth of the retained samples were black
    assert m[keys.FID_JUDGE] < whole[keys.FID_JUDGE]


def test_the_test_again_of_an_earlier_class_gives_what_the_panel_gives_of_a_class_forgotten_now():
    for name, images in (("noise", noise()), ("intact", real_data.real(3))):
        shares = recognised(real_data.samples(3, images), real_data.judges(), 3)
        m = measured(3, images)
        assert shares == {key: m[f"forget/{key}"] for key in shares}, name
    assert set(shares) == {"recognised", "recognised_low", "recognised_high", "second_recognised"}
