from __future__ import annotations

import torch

from safemax.data.batches import to_float
from safemax.methods.dimum import DiMUM
from tests.support import tiny_models


def test_a_forgotten_label_is_denoised_on_its_own_fixed_images():
    diffusion, batches = tiny_models.diffusion(), tiny_models.batches(0, 2)
    method = DiMUM(alternative_images=3)
    method.prepare(diffusion, batches)
    images = method.state()["images"]
    assert images.shape == (2, 3, 1, 8, 8)  # classes 0 and 2
    c = torch.tensor([2, 0, 2, 2, 0])
    rows = method.alternative(c)
    for x0, label in zip(rows.x0, c.tolist(), strict=True):
        assert any(torch.equal(x0, to_float(each)) for each in images[label // 2])
    assert not torch.equal(images[0], images[1])


def test_both_terms_are_denoising_losses_of_perfect_zero():
    diffusion, batch = tiny_models.diffusion(), tiny_models.batch()
    method = DiMUM(retain_weight=2.0)
    method.prepare(diffusion, tiny_models.batches())
    eps = []
    diffuse = diffusion.diffuse
    diffusion.diffuse = lambda x0, t, e: eps.append(e) or diffuse(x0, t, e)
    diffusion.forward = lambda x_t, t, c: eps[-1] + 1.0
    retain, forget = (value for terms in method.losses(diffusion, batch) for value in terms.values())
    torch.testing.assert_close(torch.stack([retain, forget]), torch.tensor([2.0, 1.0]))
