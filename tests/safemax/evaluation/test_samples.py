"""What is drawn, and how the cache keeps it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from safemax.evaluation.protocol import Evaluation
from safemax.evaluation.samples import cached_samples, draw
from tests.support import tiny_models

QUICK = Evaluation(protocol="custom", sampler_steps=2, forget_samples=8, retain_samples=5, second_samples=5)


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
