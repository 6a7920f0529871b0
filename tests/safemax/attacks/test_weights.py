from __future__ import annotations

import torch

from safemax.attacks.weights import Weights, merged, quantised
from tests.support import tiny_models
from tests.support.attack_settings import setting


def test_weights_are_rounded_to_symmetric_levels_of_their_output_channel():
    diffusion = tiny_models.diffusion()
    weight = diffusion.denoiser.class_embedding.weight
    with torch.no_grad():
        weight[:, :3] = torch.tensor([-1.0, 0.3, 0.6])
        weight[:, 3:] = 0
    # Two bits have the levels -1, 0, 1 times the largest magnitude, which is 1.
    assert quantised(diffusion, 2).denoiser.class_embedding.weight[0, :3].tolist() == [-1, 0, 1]
    # Three bits have -3 .. 3 times 1/3: 0.3 and 0.6 are nearest to 1/3 and 2/3.
    rounded = quantised(diffusion, 3).denoiser.class_embedding.weight[0, :3]
    assert torch.allclose(rounded, torch.tensor([-1, 1 / 3, 2 / 3]))


def test_eight_bits_change_no_weight_by_more_than_half_a_level():
    diffusion = tiny_models.diffusion()
    for p, q in zip(diffusion.parameters(), quantised(diffusion, 8).parameters(), strict=True):
        if p.ndim > 1:
            level = p.abs().flatten(1).amax(1) / 127
            assert ((p - q).abs().flatten(1).amax(1) <= level / 2 + 1e-7).all()
        else:
            assert torch.equal(p, q)


def test_merging_goes_from_the_model_to_the_base():
    diffusion, base = tiny_models.diffusion(0), tiny_models.diffusion(1)
    assert merged(diffusion, base, 0.0).digest() == diffusion.digest()
    assert merged(diffusion, base, 1.0).digest() == base.digest()
    half = next(merged(diffusion, base, 0.5).parameters())
    assert torch.allclose(half, (next(diffusion.parameters()) + next(base.parameters())) / 2)


def test_without_a_base_of_the_same_network_nothing_is_merged():
    for base in (None, tiny_models.diffusion(null=False)):
        outcome = Weights().run(tiny_models.diffusion(), setting(base=base))
        assert set(outcome.success) == {"weights_bits"}
