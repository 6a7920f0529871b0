from __future__ import annotations

import dataclasses

import torch

from safemax.attacks.dimra import DiMRA
from safemax.data.dataset import Split
from tests.support import tiny_models
from tests.support.attack_settings import quick, setting


def test_the_attacker_never_reads_what_was_forgotten():
    # other pixels of the forgotten class in training, and other labels of the auxiliary images, change nothing
    data = tiny_models.dataset()
    black = torch.where(data.train.labels.view(-1, 1, 1, 1) == 0, 0, data.train.images).to(torch.uint8)
    other = dataclasses.replace(
        data, train=Split(black, data.train.labels), test=Split(data.test.images, data.test.labels.flip(0))
    )
    results = [quick("dimra", DiMRA).run(tiny_models.diffusion(), setting(dataset=each)) for each in (data, other)]
    assert torch.equal(results[0].pictures, results[1].pictures)
    assert [cell.variant for cell in results[0].cells] == ["dimra_retain"] * 5 + ["dimra_auxiliary"] * 5
