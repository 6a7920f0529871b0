from __future__ import annotations

import copy

import torch

from safemax.data.batches import reseed
from safemax.methods.dualoptim import DualOptim
from safemax.methods.sfron import SFRon
from safemax.training.settings import Training
from tests.support import tiny_models

TRAINING = {"steps": 3, "batch_size": 8, "lr": 1e-3, "device": "cpu", "checkpoint_every": 1}


def by_hand(steps):
    """The official loop: two Adams, mask, clip and step on the forget loss, then clip and step on the retain loss."""
    diffusion, method = tiny_models.diffusion(), DualOptim(fisher_batches=2)
    batches = tiny_models.batches()
    reseed(0, -1, 0)
    method.run_steps = steps
    method.prepare(diffusion, batches)
    diffusion.train()
    weights = list(diffusion.parameters())
    retain_adam, forget_adam = (torch.optim.Adam(weights, lr=lr, fused=True) for lr in (1e-3, 1e-4))
    for step in range(steps):
        reseed(0, step, 0)
        batch = batches(step)
        method.steps_done = step
        for adam, losses in ((forget_adam, method._forget_loss), (retain_adam, method.losses)):
            adam.zero_grad()
            (terms,) = losses(diffusion, batch)
            sum(terms.values()).backward()
            if adam is forget_adam:
                for p, mask in zip(weights, method._mask.parts(weights), strict=True):
                    p.grad.mul_(mask)
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            adam.step()
    return weights


def test_it_takes_the_steps_of_the_official_loop_with_two_adams():
    diffusion = tiny_models.diffusion()
    tiny_models.train(diffusion, DualOptim(fisher_batches=2), Training(**TRAINING))
    for own, expected in zip(diffusion.parameters(), by_hand(3), strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-5, atol=1e-6)


def test_neither_adam_sees_the_others_gradients():
    # without a retain step's weight the trainer's Adam has zero gradients and never moves; the second moves alone
    diffusion = tiny_models.diffusion()
    before = copy.deepcopy(list(diffusion.parameters()))
    method = DualOptim(fisher_batches=2, retain_weight=0.0)
    tiny_models.train(diffusion, method, Training(**TRAINING))
    weights = list(diffusion.parameters())
    for p, old, mask in zip(weights, before, method._mask.parts(weights), strict=True):
        assert torch.equal(p[~mask], old[~mask])
    moments = method.state()
    assert max(value.abs().max() for name, value in moments.items() if name.endswith("exp_avg")) > 0


def test_the_papers_coefficients_are_1_on_sums_at_every_size():
    assert DualOptim().forget_weight == 3 * 32 * 32
    diffusion, batch = tiny_models.diffusion(), tiny_models.batch()
    losses = []
    for method in (SFRon(**SFRon.presets["paper"]), DualOptim(**DualOptim.presets["paper"])):
        torch.manual_seed(0)
        (terms,) = method.losses(diffusion, batch)
        losses.append(terms["retain"].item())
    assert losses[0] == losses[1]
    torch.manual_seed(0)
    (terms,) = SFRon(retain_weight=64.0).losses(diffusion, batch)
    assert terms["retain"].item() == losses[0]  # 64 = 1 x 8 x 8


def test_the_second_adams_moments_are_in_its_state():
    method = DualOptim(fisher_batches=2)
    tiny_models.train(tiny_models.diffusion(), method, Training(**TRAINING))
    again = DualOptim(fisher_batches=2)
    again.load_state(method.state())
    assert again.state().keys() == method.state().keys()
    assert any(name.startswith("adam.") for name in again.state())
