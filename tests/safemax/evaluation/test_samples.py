"""What is drawn, and how the cache keeps it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from safemax.errors import InputError, Stopped
from safemax.evaluation import samples
from safemax.evaluation.protocol import Evaluation
from safemax.evaluation.samples import announce, cached_samples, draw
from safemax.storage import cache
from tests.support import tiny_kinds, tiny_models

QUICK = Evaluation(
    protocol="custom", sampler_steps=2, forget_samples=8, retain_samples=5, second_samples=5, user_samples=0
)


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


def test_a_draw_that_was_ended_goes_on_after_its_last_whole_batch(tmp_path, monkeypatch):
    monkeypatch.setattr(samples, "BATCH", 6)
    whole = draw(tiny_models.diffusion(), (0,), QUICK, progress=False)
    tensors, saved = cache.save_tensors, []

    def save_two(path, given):
        if len(saved) == 2:
            raise Stopped("in the middle")
        saved.append(path)
        tensors(path, given)

    monkeypatch.setattr(cache, "save_tensors", save_two)
    with pytest.raises(Stopped):
        draw(tiny_models.diffusion(), (0,), QUICK, progress=False, parts=tmp_path)
    monkeypatch.setattr(cache, "save_tensors", tensors)
    kept = {path: path.read_bytes() for path in saved}
    again = draw(tiny_models.diffusion(), (0,), QUICK, progress=False, parts=tmp_path)
    assert torch.equal(again.images, whole.images)
    assert torch.equal(again.second_images, whole.second_images)
    assert {path: path.read_bytes() for path in saved} == kept
    assert len(list(tmp_path.iterdir())) == 3 + 3  # 18 and 15 rows in batches of 6


def test_the_samplers_that_people_use_draw_a_few_images_of_each_class():
    evaluation = replace(QUICK, user_samples=2)
    found = draw(tiny_models.diffusion(steps=4), (0,), evaluation, progress=False).draws()
    assert list(found) == ["main", "second", "clipped", "unguided", "strong"]
    assert found["clipped"][1].tolist() == [0, 0, 1, 1, 2, 2]
    assert not torch.equal(found["clipped"][0], found["strong"][0])
    unguided = draw(
        tiny_models.diffusion(null=False, steps=4), (0,), replace(evaluation, guidance_scale=1.0), progress=False
    )
    assert list(unguided.draws()) == ["main", "second", "unguided"]


def test_a_long_draw_says_its_cost_beforehand_and_a_short_one_nothing(capsys):
    announce(tiny_models.diffusion(), (0,), QUICK)
    assert capsys.readouterr().out == ""
    announce(tiny_models.diffusion(), (0,), QUICK, least=10)
    # 18 rows of 2 guided steps, 15 of 2
    assert "sampling 33 images takes 132 passes of the network, about" in capsys.readouterr().out
    announce(tiny_kinds.latent_dit(), (0,), QUICK, least=10)
    assert "takes 132 passes" in capsys.readouterr().out


def test_a_draw_that_takes_absurdly_long_is_refused_with_what_takes_less():
    brief = replace(QUICK, panel_hours=1e-9)
    with pytest.raises(InputError, match=r"132 passes.*more than panel_hours = 1e-09; fewer retain_samples"):
        announce(tiny_models.diffusion(), (0,), brief, least=10)
    announce(tiny_models.diffusion(), (0,), replace(brief, panel_hours=0), least=10)
