"""The panel on samples whose numbers can be told beforehand: real images, noise, another class."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch

from safemax.data.batches import to_uint8
from safemax.diffusion.sampling import Sampler
from safemax.errors import InputError
from safemax.evaluation.measure import Evaluation, cached_samples, draw, measure, noise_features, recognised
from safemax.metrics.outcome import wilson
from tests.support import real_data, tiny_models

QUICK = Evaluation(protocol="custom", sampler_steps=2, forget_samples=8, retain_samples=5, second_samples=5)


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
        assert m["forget/recognised"] + m["forget/rejected"] + m["forget/other"] == pytest.approx(100)
        assert m["forget/ua_reject"] == pytest.approx(100 - m["forget/recognised"])
        assert m[f"forget/{share}"] > 90


def test_shares_have_wilson_intervals(panel):
    m, n = panel["noise"], 150
    assert (m["forget/rejected_low"], m["forget/rejected_high"]) == wilson(round(n * m["forget/rejected"] / 100), n)
    for name in ("ua", "ua_reject", "recognised", "rejected", "other", "precision", "coverage"):
        assert m[f"forget/{name}_low"] <= m[f"forget/{name}"] <= m[f"forget/{name}_high"]
    assert m["retain/accuracy_low"] <= m["retain/accuracy"] <= m["retain/accuracy_high"]


def test_precision_coverage_and_normalised_kid_place_the_samples_between_the_class_and_noise(panel):
    assert panel["real"]["forget/precision"] > 0.7
    assert panel["noise"]["forget/precision"] < 0.1
    assert panel["other"]["forget/precision"] < 0.1
    assert panel["real"]["forget/kid_normalised"] == pytest.approx(0, abs=0.1)
    assert panel["noise"]["forget/kid_normalised"] == pytest.approx(1, abs=0.1)


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
    assert not any(name.endswith("_3") and name.startswith("retain_class/") for name in intact)


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


def test_fewer_forget_samples_than_kid_can_take_are_refused_before_any_work():
    with pytest.raises(InputError, match="forget_samples = 3 is not allowed; 4 or more, which KID needs"):
        Evaluation(forget_samples=3)


def test_the_gap_to_a_gold_model_is_nothing_for_the_model_itself_and_large_for_another():
    own = real_data.samples(3, real_data.real(5))
    same = measured(3, real_data.real(5), gold=own)
    apart = measured(3, noise(len(real_data.real(5))), gold=own)
    assert same["gold/answers_js"] == 0
    assert apart["gold/answers_js"] == pytest.approx(
        0.693, abs=0.05
    )  # ln 2: all rejected against all taken for another
    assert apart["gold/kid_forget"] > 10 * abs(same["gold/kid_forget"])
    assert apart["gold/kid_retain"] == pytest.approx(same["gold/kid_retain"])


def test_black_frames_are_counted_and_pictures_are_not(panel):
    assert measured(3, torch.zeros(50, 1, 8, 8, dtype=torch.uint8))["pixels/constant"] == 100
    assert panel["real"]["pixels/constant"] == panel["noise"]["pixels/constant"] == 0


def test_the_second_sampler_has_its_own_numbers():
    samples = real_data.samples(3, noise())
    rows = samples.labels == 3
    second = samples.images.clone()
    second[rows] = real_data.real(3)[torch.arange(int(rows.sum())) % len(real_data.real(3))]
    m = measure(replace(samples, second_images=second), real_data.judges(), real_data.reference(), (3,))
    assert m["forget/recognised"] < 5
    assert m["forget/second_recognised"] > 90
    assert m["forget/second_precision"] > 0.7
    assert m["forget/second_ua_reject"] == pytest.approx(100 - m["forget/second_recognised"])


def test_noise_features_are_kept_by_the_judges_digest(tmp_path, monkeypatch):
    monkeypatch.setenv("SAFEMAX_CACHE", str(tmp_path))
    first = noise_features(real_data.judges())
    (path,) = tmp_path.rglob("*.safetensors")
    written = os.stat(path).st_mtime_ns
    assert torch.equal(noise_features(real_data.judges()), first)
    assert os.stat(path).st_mtime_ns == written
    noise_features(replace(real_data.judges(), digest="another"))
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2


def test_two_models_start_from_identical_noise_and_the_counts_are_the_protocols():
    first, second = (draw(tiny_models.diffusion(seed), (0,), QUICK, progress=False) for seed in (0, 1))
    assert torch.equal(first.labels, second.labels)
    assert first.labels.bincount().tolist() == [8, 5, 5]
    assert not torch.equal(first.images, second.images)


def test_samples_are_kept_by_everything_that_decides_them(tmp_path, monkeypatch):
    monkeypatch.setenv("SAFEMAX_CACHE", str(tmp_path))
    for model, forget, evaluation in (
        (tiny_models.diffusion(), (0,), QUICK),
        (tiny_models.diffusion(), (0,), QUICK),
        (tiny_models.diffusion(1), (0,), QUICK),
        (tiny_models.diffusion(), (1,), QUICK),
        (tiny_models.diffusion(), (0,), replace(QUICK, evaluation_seed=1)),
        (tiny_models.diffusion(), (0,), replace(QUICK, second_samples=6)),
    ):
        cached_samples(model, forget, evaluation, progress=False)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 5
    rescheduled = tiny_models.diffusion()
    rescheduled.alpha_bar *= 0.9
    cached_samples(rescheduled, (0,), QUICK, progress=False)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 6


@pytest.mark.parametrize("damage", [lambda kept: kept[:-40], lambda kept: kept[:-1] + bytes([kept[-1] ^ 1])])
def test_kept_samples_that_a_disk_damaged_are_drawn_again(tmp_path, monkeypatch, damage):
    monkeypatch.setenv("SAFEMAX_CACHE", str(tmp_path))
    first = cached_samples(tiny_models.diffusion(), (0,), QUICK, progress=False)
    (path,) = tmp_path.rglob("*.safetensors")
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    again = cached_samples(tiny_models.diffusion(), (0,), QUICK, progress=False)
    assert torch.equal(again.images, first.images)
    assert path.read_bytes() == whole


def test_the_protocols_are_what_the_house_says():
    paper, fast = Evaluation(protocol="paper"), Evaluation()
    assert paper.main_sampler == Sampler("ddpm", 1000, 3.0, 0.0, False)
    assert paper.counts == (500, 5000)
    assert fast.main_sampler == Sampler("ddim", 20, 1.5, 0.0, True)
    assert {paper.second_sampler.name, fast.second_sampler.name} == {"ddim", "ddpm"}


def test_means_have_standard_errors_and_the_second_sampler_intervals(panel):
    m, n = panel["noise"], 150
    assert 0 < m["forget/entropy_se"] < 0.5 * m["forget/entropy"]
    # KID is shifted and scaled to its place between two fixed references, and its error scaled with it
    scale = m["forget/kid_noise"] - m["forget/kid_real"]
    assert m["forget/kid_normalised_se"] == pytest.approx(m["forget/kid_se"] / scale)
    rejected = round(n * m["forget/second_reject"] / 100)
    assert (m["forget/second_reject_low"], m["forget/second_reject_high"]) == wilson(rejected, n)
    assert m["forget/second_precision_low"] <= m["forget/second_precision"] <= m["forget/second_precision_high"]


def test_a_class_that_was_forgotten_earlier_counts_neither_as_forgotten_nor_as_retained():
    samples, real_images = real_data.samples(3, noise()), real_data.reference()
    spoilt = samples.images.clone()
    spoilt[samples.labels == 5] = 0  # an earlier correction's: black frames
    samples = replace(samples, images=spoilt)
    whole = measure(samples, real_data.judges(), real_images, (3,))
    m = measure(samples.without((5,)), real_data.judges(), real_images.without((5,)), (3,))
    assert m["forget/recognised"] == whole["forget/recognised"]
    assert "retain_class/accuracy_5" not in m
    assert m["retain/accuracy"] > 95 > whole["retain/accuracy"]  # about a ninth of the retained samples were black
    assert m["retain/fid_judge"] < whole["retain/fid_judge"]


def test_the_test_again_of_an_earlier_class_gives_what_the_panel_gives_of_a_class_forgotten_now():
    for name, images in (("noise", noise()), ("intact", real_data.real(3))):
        found = recognised(real_data.samples(3, images), real_data.judges(), 3)
        m = measured(3, images)
        assert found == {key: m[f"forget/{key}"] for key in found}, name
    assert set(found) == {"recognised", "recognised_low", "recognised_high", "second_recognised"}
