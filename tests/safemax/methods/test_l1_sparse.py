from __future__ import annotations

import pytest
import torch

from safemax.method_tools.sparsity import fading_l1
from safemax.methods.l1_sparse import L1Sparse
from safemax.methods.munba import MUNBa
from safemax.training.settings import Training
from tests.support import tiny_models


def test_the_penalty_is_the_official_norm_and_fades_to_0():
    weights = list(tiny_models.diffusion().parameters())
    official = torch.linalg.norm(torch.cat([p.view(-1) for p in weights]), ord=1)  # as Jia et al. write it
    values = [fading_l1(weights, 2.0, done, 10) / official for done in (0, 5, 10, 20)]
    assert [value.item() for value in values] == pytest.approx([2.0, 1.0, 0.0, 0.0], rel=1e-5)


def test_the_loss_is_that_of_fine_tuning_plus_the_penalty_of_the_step():
    diffusion, method = tiny_models.diffusion(), L1Sparse(alpha=1e-2)
    method.run_steps, method.steps_done = 4, 1
    (terms,) = method.losses(diffusion, tiny_models.batch())
    total = sum(p.abs().sum().item() for p in diffusion.parameters())
    assert terms["l1"].item() == pytest.approx(0.75e-2 * total, rel=1e-5)


def test_a_run_shrinks_the_weights():
    norms = {}
    for alpha in (0.0, 1.0):
        diffusion = tiny_models.diffusion()
        tiny_models.train(
            diffusion, L1Sparse(alpha=alpha), Training(steps=5, batch_size=8, forget_share=0, lr=1e-3, device="cpu")
        )
        norms[alpha] = sum(p.abs().sum().item() for p in diffusion.parameters())
    assert norms[1.0] < norms[0.0]


def test_munba_adds_the_penaltys_gradient_to_its_bargain():
    gradients = {}
    for l1 in (0.0, 0.5):
        diffusion, method = tiny_models.diffusion(), MUNBa(l1=l1)
        method.prepare(diffusion, tiny_models.batches())
        torch.manual_seed(0)
        groups = method.losses(diffusion, tiny_models.batch())
        terms = method.backward(groups, diffusion, lambda loss: loss.backward())
        gradients[l1] = torch.cat([p.grad.flatten() for p in diffusion.parameters()])
        assert ("l1" in terms) == bool(l1)
    signs = torch.cat([p.detach().sign().flatten() for p in tiny_models.diffusion().parameters()])
    torch.testing.assert_close(gradients[0.5] - gradients[0.0], 0.5 * signs, rtol=0, atol=1e-5)
