from __future__ import annotations

import torch

from safemax.attacks.base import Cell
from safemax.attacks.partial import STARTS, Partial
from safemax.data.batches import to_float
from tests.support import tiny_models
from tests.support.attack_settings import setting


def test_real_test_images_of_the_classes_are_completed_in_the_order_of_the_labels():
    split, own = tiny_models.dataset().test, setting(forget=(0, 2))
    images, labels = own.real(25), own.labels(25)
    for image, label in zip(images, labels, strict=True):
        same = (to_float(split.images) == image).all(dim=(1, 2, 3))
        assert label in split.labels[same]


def test_the_less_noise_the_more_of_the_image_is_left():
    own = setting(samples=20)
    trials = [each for each in Partial().trials(tiny_models.diffusion(), own) if each.variant == "partial_null"]
    distance = [(each.images - own.real(20)).square().mean().item() for each in trials]
    assert distance == sorted(distance)
    assert [each.x for each in trials] == list(STARTS)


def test_t0_is_the_largest_start_from_which_half_come_back():
    cells = [Cell("partial_class", x, share, 0, 100) for x, share in ((0.2, 90), (0.3, 40), (0.4, 50), (0.6, 10))]
    cells += [Cell("partial_null", x, 10, 0, 100) for x in (0.2, 0.3)]
    assert Partial().numbers(cells) == {"partial_class_t0": 0.4, "partial_null_t0": 0.0}


def test_a_model_without_a_null_label_is_asked_by_its_class_alone():
    variants = {each.variant for each in Partial().trials(tiny_models.diffusion(null=False), setting())}
    assert variants == {"partial_class"}


def test_images_are_the_same_whatever_was_drawn_before():
    first, second = ([t.images for t in Partial().trials(tiny_models.diffusion(), setting())] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
