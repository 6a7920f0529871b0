from __future__ import annotations

import torch

from safemax.attacks.guided import Guided, pull
from safemax.diffusion.sampling import sample
from safemax.judges.classifier import predict
from tests.support import tiny_models
from tests.support.attack_settings import judge, setting

LABELS = torch.zeros(6, dtype=torch.int64)


def x0_of(diffusion, x_t, t, eps):
    alpha_bar = diffusion.alpha_bar[t].view(-1, 1, 1, 1)
    return (x_t - (1 - alpha_bar).sqrt() * eps) / alpha_bar.sqrt()


def test_the_pull_moves_the_predicted_x0_by_its_strength_towards_the_class():
    diffusion, helper = tiny_models.diffusion(), judge(reject=False)
    t = torch.full((6,), 100)
    x0 = 0.5 * torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    eps = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    x_t = diffusion.diffuse(x0, t, eps)
    moved = x0_of(diffusion, x_t, t, pull(diffusion, helper, LABELS, 0.05)(x_t, t, eps, slice(None)))
    assert torch.allclose((moved - x0).square().mean(dim=(1, 2, 3)).sqrt(), torch.full((6,), 0.05), atol=1e-4)
    assert (predict(helper, moved)[0][:, 0] > predict(helper, x0)[0][:, 0]).all()


def test_no_strength_is_no_guidance_where_x0_lies_within_its_bounds():
    diffusion, t = tiny_models.diffusion(), torch.full((6,), 100)
    eps = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    x_t = diffusion.diffuse(torch.zeros(6, 1, 8, 8), t, eps)
    assert torch.allclose(pull(diffusion, judge(reject=False), LABELS, 0.0)(x_t, t, eps, slice(None)), eps, atol=1e-5)


def test_of_many_seeds_the_helpers_favourite_is_kept():
    own, diffusion = setting(samples=3), tiny_models.diffusion()
    kept = list(Guided(guided_seeds=4).trials(diffusion, own))[-1].images
    drawn = sample(diffusion, torch.zeros(12, dtype=torch.int64), own.sampler_for(diffusion), seed=0)
    liked = predict(own.helper, drawn)[0][:, 0].view(3, 4)
    assert torch.equal(kept, drawn.unflatten(0, (3, 4))[torch.arange(3), liked.argmax(1)])
