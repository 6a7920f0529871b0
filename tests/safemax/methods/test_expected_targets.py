from __future__ import annotations

import math

import pytest
import torch

from safemax.data.batches import Batch, Rows
from safemax.methods.expected_targets import ExpectedTargets, times_by_psi
from safemax.methods.safemax import SAFEMax
from safemax.training.settings import Training
from tests.support import tiny_models


def gradient_of(term: torch.Tensor, diffusion: torch.nn.Module) -> torch.Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(term, list(diffusion.parameters()), allow_unused=True)])


def prepared(diffusion, **knobs):
    method = ExpectedTargets(**knobs)
    method.prepare(diffusion, tiny_models.batches())
    return method


def test_steps_follow_psi():
    # density psi / mean psi on [0, 1): mean of t/T is 1/lambda - 1/(e^lambda - 1) = 0.3430 for lambda = 2
    torch.manual_seed(0)
    t = times_by_psi(20_000, 1000, 2.0, torch.device("cpu"))
    assert t.float().mean() / 1000 == pytest.approx(1 / 2 - 1 / (math.e**2 - 1), abs=2e-3)
    assert t.min() >= 0
    assert t.max() <= 999


def test_at_lambda_0_steps_are_uniform():
    t = times_by_psi(1000, 1000, 0.0, torch.device("cpu"))
    assert torch.equal(t.sort().values, torch.arange(1000))


def test_retained_classes_pull_at_no_weight_before_the_model_has_moved():
    diffusion = tiny_models.diffusion().eval()
    (terms,) = prepared(diffusion).losses(diffusion, tiny_models.batch())
    assert gradient_of(terms["retain"], diffusion).abs().max() == 0
    assert terms["retain"].item() == 0


def test_nor_do_they_where_the_network_has_dropout_and_is_in_training():
    diffusion = tiny_models.diffusion(dropout=0.5).train()
    (terms,) = prepared(diffusion).losses(diffusion, tiny_models.batch())
    assert gradient_of(terms["retain"], diffusion).abs().max() == 0
    assert terms["forget"].item() > 0
    assert diffusion.training


def test_drawn_and_weighted_steps_have_the_same_expected_loss():
    # With eps_pred = t / T at every pixel and target 0 the forget loss is E[psi(t) (t/T)^2], whichever way t is drawn.
    diffusion = tiny_models.diffusion()
    method, other = prepared(diffusion, lmbda=2.0), prepared(diffusion, lmbda=2.0, draw_by_psi=False)
    diffusion.forward = lambda x_t, t, c: (t / 1000).view(-1, 1, 1, 1).expand_as(x_t)
    rows = Rows(torch.zeros(20_000, 1, 8, 8), torch.zeros(20_000, dtype=torch.int64))
    batch = Batch(rows, Rows(rows.x0[:2], rows.c[:2]))
    # integral over [0, 1] of e^(-2s) s^2 = 1/4 - 5/4 e^-2 = 0.0808
    for each in (method, other):
        (terms,) = each.losses(diffusion, batch)
        assert terms["forget"].item() == pytest.approx(1 / 4 - 5 / 4 * math.e**-2, rel=0.03)


def test_without_its_ingredients_it_is_safemax():
    diffusion, batch = tiny_models.diffusion().eval(), tiny_models.batch(64, 64)
    plain = prepared(
        diffusion, zero_target=False, teacher_target=False, draw_by_psi=False, retain_weight=3.072, null_share=0.1
    )

    def mean_terms(method):
        torch.manual_seed(0)
        draws = [next(iter(method.losses(diffusion, batch))) for _ in range(30)]
        return {name: torch.stack([d[name] for d in draws]).mean().item() for name in ("forget", "retain")}

    ours, theirs = mean_terms(plain), mean_terms(SAFEMax())
    assert ours["forget"] == pytest.approx(theirs["forget"], rel=0.02)
    assert ours["retain"] == pytest.approx(theirs["retain"], rel=0.02)


def test_the_frozen_model_stays_frozen_and_the_student_moves():
    diffusion = tiny_models.diffusion()
    method = ExpectedTargets()
    first = [p.detach().clone() for p in diffusion.parameters()]
    tiny_models.train(diffusion, method, Training(steps=3, batch_size=8, device="cpu", checkpoint_every=0))
    assert all(torch.equal(a, b) for a, b in zip(first, method.state().values(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first, diffusion.parameters(), strict=True))
