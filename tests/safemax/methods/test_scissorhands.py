from __future__ import annotations

import pytest
import torch

from safemax.data.batches import Batch, Rows
from safemax.errors import InputError
from safemax.methods.scissorhands import Scissorhands, connected
from tests.support import tiny_models


def test_the_most_salient_share_is_taken_over_all_weights_together():
    # ceil(0.4 * 5) = 2: the 9 and the 7, both in the first tensor
    chosen = connected([torch.tensor([[9.0, 7.0]]), torch.tensor([5.0, 1.0, 6.0])], 0.4)
    assert torch.equal(chosen[0], torch.tensor([[True, True]]))
    assert not chosen[1].any()


def test_equal_saliencies_are_not_taken_beyond_the_share():
    (chosen,) = connected([torch.ones(10)], 0.3)
    assert chosen.sum() == 3


def test_the_trimmed_weights_are_those_of_largest_gradient_times_weight():
    # the official rule, with the guided prediction 3 eps_c - 2 eps_null written out and each pass apart
    diffusion, before = tiny_models.diffusion(), dict(tiny_models.diffusion().named_parameters())
    weights = list(diffusion.parameters())
    torch.manual_seed(4)
    total = [torch.zeros_like(w) for w in weights]
    for step in range(2):
        rows = tiny_models.batches()(step).forget
        t, eps = diffusion.times(len(rows)), torch.randn_like(rows.x0)
        x_t = diffusion.diffuse(rows.x0, t, eps)
        guided = 3 * diffusion(x_t, t, rows.c) - 2 * diffusion(x_t, t, torch.full_like(rows.c, 3))
        for sum_, g in zip(total, torch.autograd.grad((eps - guided).square().mean(), weights), strict=True):
            sum_ += g.abs()
    saliency = torch.cat([(g * w).abs().flatten() for g, w in zip(total, weights, strict=True)])
    torch.manual_seed(4)
    Scissorhands(trim=0.01, trim_batches=2).prepare(diffusion, tiny_models.batches())
    moved = torch.cat([(p != before[name]).flatten() for name, p in diffusion.named_parameters()])
    count = -(-len(saliency) // 100)
    expected = torch.zeros_like(moved)
    expected[saliency.topk(count).indices] = True
    gains = torch.cat([(p == 1).flatten() for p in before.values()])  # a gain that was 1 is 1 again
    assert torch.equal(moved, expected & ~gains)


def test_fresh_weights_are_small_fresh_biases_0_and_fresh_gains_1():
    diffusion = tiny_models.diffusion()
    with torch.no_grad():
        for p in diffusion.parameters():
            p.fill_(5.0)
    torch.manual_seed(0)
    Scissorhands(trim=1.0, trim_batches=1).prepare(diffusion, tiny_models.batches())
    norms = [m for m in diffusion.modules() if isinstance(m, torch.nn.GroupNorm)]
    assert all((m.weight == 1).all() and (m.bias == 0).all() for m in norms)
    # 8 x 8 x 3 x 3 draws of deviation 0.02, cut at +-2: the standard error of the deviation is 0.02 / sqrt(2 * 576) = 0.0006
    assert diffusion.denoiser.mid_block.resnets[0].conv1.weight.std().item() == pytest.approx(0.02, abs=0.003)
    assert (diffusion.denoiser.mid_block.resnets[0].conv1.bias == 0).all()


def test_nothing_is_trimmed_at_a_share_of_0():
    diffusion = tiny_models.diffusion()
    Scissorhands(trim=0.0, trim_batches=1).prepare(diffusion, tiny_models.batches())
    assert diffusion.digest() == tiny_models.diffusion().digest()


def test_the_repair_descends_retain_minus_lambda_forget():
    # eps_pred = eps + 0.5 on forget rows, eps + 2 on retain rows: losses 0.25 and 4; lambda 0.2: terms -0.05 and 4
    diffusion = tiny_models.diffusion()
    diffusion.alpha_bar[:] = 0.0
    diffusion.forward = lambda x_t, t, c: x_t + torch.where(c == 0, 0.5, 2.0).view(-1, 1, 1, 1)
    rows = [Rows(torch.zeros(2, 1, 8, 8), torch.full((2,), c)) for c in (0, 1)]
    groups = list(Scissorhands(lmbda=0.2).losses(diffusion, Batch(*rows)))
    terms = {name: value.item() for group in groups for name, value in group.items()}
    assert terms == pytest.approx({"retain": 4.0, "forget": -0.05})


@pytest.mark.parametrize(("preset", "bound"), [({}, True), (Scissorhands.presets["paper"], False)])
def test_a_forgotten_row_is_climbed_no_further_unless_as_the_paper_does(preset, bound):
    # the loss of eps + 2 is 4, beyond the cap of 1
    diffusion = tiny_models.diffusion()
    diffusion.alpha_bar[:] = 0.0
    shift = torch.tensor(2.0, requires_grad=True)
    diffusion.forward = lambda x_t, t, c: x_t + shift
    _, forget = Scissorhands(**preset).losses(diffusion, tiny_models.batch())
    forget["forget"].backward()
    assert (shift.grad == 0) == bound


def test_guidance_and_label_drop_without_a_null_label_are_refused_before_any_work():
    diffusion = tiny_models.diffusion(null=False)
    with pytest.raises(InputError, match="no null label"):
        Scissorhands(retain_null_drop=0.0).validate(diffusion)
    Scissorhands(retain_null_drop=0.0, trim_guidance_scale=1.0).validate(diffusion)
