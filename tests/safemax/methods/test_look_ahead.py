from __future__ import annotations

import torch

from safemax.methods.expected_targets import ExpectedTargets
from safemax.methods.look_ahead import LookAhead
from safemax.training.settings import Training
from tests.support import tiny_models

TRAINING = Training(steps=3, batch_size=8, lr=1e-3, device="cpu", checkpoint_every=0)


def trained(method):
    diffusion = tiny_models.diffusion()
    tiny_models.train(diffusion, method, TRAINING)
    return diffusion.digest()


def test_without_looking_ahead_it_is_expected_targets():
    assert trained(LookAhead(ahead_steps=0)) == trained(ExpectedTargets(lmbda=0.0, retain_weight=10.0))
    assert trained(LookAhead(ahead_steps=1)) != trained(ExpectedTargets(lmbda=0.0, retain_weight=10.0))


class Watched(LookAhead):
    """Look-ahead that notes the weights before, ahead and after, and the gradients there."""

    def _relearn_loss(self, diffusion, batch):
        self.starts.append([p.detach().clone() for p in diffusion.parameters()])
        yield from super()._relearn_loss(diffusion, batch)

    def _ahead_loss(self, diffusion, batch):
        self.ahead.append([p.detach().clone() for p in diffusion.parameters()])
        yield from super()._ahead_loss(diffusion, batch)

    def losses(self, diffusion, batch):
        self.outer.append([p.detach().clone() for p in diffusion.parameters()])
        yield from super().losses(diffusion, batch)


def test_the_simulated_attacker_moves_by_signs_and_is_undone():
    method = Watched(ahead_steps=1, ahead_lr=1e-2)
    method.starts, method.ahead, method.outer = [], [], []
    tiny_models.train(tiny_models.diffusion(), method, TRAINING)
    assert len(method.outer) == 3
    for start, ahead, outer in zip(method.starts, method.ahead, method.outer, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(start, outer, strict=True))
        moves = torch.cat([(a - b).abs().flatten() for a, b in zip(start, ahead, strict=True)])
        assert moves.max().item() <= 1e-2 * 1.001  # every weight by the length of a step, or not at all
        assert (moves > 0.9e-2).float().mean() > 0.5


def test_the_step_adds_the_gradient_taken_ahead_to_that_of_the_usual_losses():
    diffusion, batch = tiny_models.diffusion(), tiny_models.batch()
    found = {}
    for captured in (False, True):
        method = LookAhead()
        method.prepare(diffusion, tiny_models.batches())
        method._captured = [torch.full_like(p, 0.5) for p in diffusion.parameters()] if captured else []
        diffusion.zero_grad()
        torch.manual_seed(0)
        method.backward(method.losses(diffusion, batch), diffusion, lambda loss: loss.backward())
        found[captured] = [p.grad.clone() for p in diffusion.parameters()]
    for without, with_it in zip(found[False], found[True], strict=True):
        torch.testing.assert_close(with_it, without + 0.5)
