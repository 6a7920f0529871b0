from __future__ import annotations

import math

import pytest
import torch

from safemax.errors import InputError, Stopped
from safemax.methods.sfron import SFRon, adaptive_weights
from safemax.training.hooks import Folders, Hooks
from safemax.training.settings import Training
from tests.support import tiny_models

FEW = {"fisher_batches": 2}
TRAINING = {"steps": 4, "batch_size": 8, "lr": 1e-2, "device": "cpu", "checkpoint_every": 1}


def prepared(**knobs):
    diffusion, method = tiny_models.diffusion(), SFRon(**FEW, **knobs)
    method.prepare(diffusion, tiny_models.batches())
    return diffusion, method, tiny_models.batches()(0)


def masked(method, diffusion):
    """Return, for each weight tensor, where the mask leaves it out."""
    weights = list(diffusion.parameters())
    parts = method._mask.flat.split([p.numel() for p in weights])
    return [~part.view_as(p) for part, p in zip(parts, weights, strict=True)]


def test_rows_are_weighted_by_the_inverse_root_of_their_loss():
    # losses 1 and 4: 1 / sqrt is 1 and 1/2, of mean 3/4, so 4/3 and 2/3
    weights = adaptive_weights(torch.tensor([1.0, 4.0]), 0.5)
    torch.testing.assert_close(weights, torch.tensor([4 / 3, 2 / 3]))


def test_the_weighted_loss_is_the_official_one_on_sums_over_pixels():
    # the official loss on sums over 64 pixels: minus 10 times sum_n (coef_n / sum coef) l_n, coef = 1 / (l^0.5 + 1e-8)
    diffusion, method, batch = prepared(forget_weight=10.0 * 64)
    torch.manual_seed(5)
    (terms,) = method._forget_loss(diffusion, batch)
    torch.manual_seed(5)
    rows = batch.forget
    t, eps = diffusion.times(len(rows)), torch.randn_like(rows.x0)
    loss = (diffusion(diffusion.diffuse(rows.x0, t, eps), t, rows.c) - eps).square().sum((1, 2, 3))
    coefficient = 1 / (loss.detach() ** 0.5 + 1e-8)
    expected = -10 * (coefficient / coefficient.sum() * loss * len(loss)).mean()
    assert terms["forget"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_default_coefficients_are_the_official_ones_in_mean_units():
    assert (SFRon().forget_weight, SFRon().retain_weight) == (10 * 3 * 32 * 32, 3 * 32 * 32)


@pytest.mark.parametrize(
    ("done", "share"), [(0, 1.0), (25, (1 + math.cos(math.pi / 4)) / 2), (50, 0.5), (100, 0), (150, 0)]
)
def test_the_forget_coefficient_falls_as_a_cosine_to_0(done, share):
    diffusion, method, batch = prepared(decay_steps=100)
    torch.manual_seed(5)
    (full,) = method._forget_loss(diffusion, batch)
    method.steps_done = done
    torch.manual_seed(5)
    (now,) = method._forget_loss(diffusion, batch)
    assert now["forget"].item() == pytest.approx(share * full["forget"].item(), rel=1e-5, abs=1e-3)


def test_the_mask_is_where_the_forget_fisher_outweighs_the_other():
    # The prior written pass by pass: gradients of 3 eps_c - 2 eps_null summed over pixels, clipped to norm 1, squared.
    diffusion = tiny_models.diffusion()
    weights = list(diffusion.parameters())
    torch.manual_seed(4)
    fisher = []
    for part in ("forget", "retain"):
        total = torch.zeros(sum(w.numel() for w in weights))
        for step in range(2):
            rows = getattr(tiny_models.batches()(step), part)
            t, eps = diffusion.times(len(rows)), torch.randn_like(rows.x0)
            x_t = diffusion.diffuse(rows.x0, t, eps)
            guided = 3 * diffusion(x_t, t, rows.c) - 2 * diffusion(x_t, t, torch.full_like(rows.c, 3))
            loss = (eps - guided).square().sum((1, 2, 3)).mean()
            g = torch.cat([each.flatten() for each in torch.autograd.grad(loss, weights)])
            total += (g * min(1, 1 / g.norm())).square() / 2
        fisher.append(total)
    ratio = (fisher[0] + 1e-15) / (fisher[1] + 1e-15)
    method = SFRon(**FEW)
    torch.manual_seed(4)
    method.prepare(diffusion, tiny_models.batches())
    clear = (ratio - 1).abs() > 1e-3
    assert clear.float().mean() > 0.9
    assert torch.equal(method._mask.flat[clear], (ratio >= 1)[clear])
    assert 0.05 < method._mask.flat.float().mean() < 0.95


def test_a_short_gradient_is_not_stretched_in_the_fisher_information():
    # the loss 1e-3 times the sum of all weights has the gradient 1e-3 everywhere, of norm 0.14 over 18,600 weights
    diffusion, method = tiny_models.diffusion(), SFRon(**FEW)
    method._guided_loss = lambda diffusion, rows: 1e-3 * sum(p.sum() for p in diffusion.parameters())
    for fisher in method._fisher(diffusion, [tiny_models.batch().forget] * 2):
        torch.testing.assert_close(fisher, torch.full_like(fisher, 1e-6))


class Watched(SFRon):
    """SFR-on that notes, for each forget step, whether a masked weight moved and how long the gradient was."""

    def step(self, diffusion, batch, optimizer_step):
        before = [p.detach().clone() for p in diffusion.parameters()]
        left_out = masked(self, diffusion)

        def watched(losses, batch):
            if not self._forgetting:
                changes = zip(diffusion.parameters(), before, left_out, strict=True)
                self.moved.append(any(((p != old) & out).any() for p, old, out in changes))
            return optimizer_step(losses, batch)

        return super().step(diffusion, batch, watched)

    def constrain(self, diffusion):
        if self._forgetting:
            self.norms.append(torch.nn.utils.get_total_norm([p.grad for p in diffusion.parameters()]).item())


def watched(**knobs):
    method = Watched(**FEW, **knobs)
    method.moved, method.norms = [], []
    tiny_models.train(tiny_models.diffusion(), method, Training(**TRAINING))
    return method


def test_forget_steps_leave_masked_weights_bit_for_bit():
    assert watched().moved == [False] * 4


def test_momentum_moves_masked_weights_as_in_the_official_code_in_the_paper_preset():
    # at the first forget step Adam has no momentum yet; from the second on that of the retain steps moves every weight
    assert watched(**SFRon.presets["paper"]).moved == [False, True, True, True]


def test_the_forget_gradient_is_clipped_after_it_is_masked():
    # clipped before, the norm of what the mask leaves would be below 1
    assert watched().norms == pytest.approx([1.0] * 4, rel=1e-4)


def test_a_stopped_run_resumes_at_its_place_in_the_decay(tmp_path):
    def trained(folder=None, stop=lambda: False):
        diffusion, method = (
            tiny_models.diffusion(),
            SFRon(**FEW, forget_weight=0.5, decay_steps=4),
        )  # too small for the clip to bind
        hooks, folders = Hooks(should_stop=stop, progress=False), Folders(checkpoints=folder)
        tiny_models.train(diffusion, method, Training(**TRAINING), hooks=hooks, folders=folders)
        return diffusion.digest()

    asked = iter(range(10))
    with pytest.raises(Stopped):
        trained(tmp_path, stop=lambda: next(asked) >= 2)
    assert trained(tmp_path) == trained()


def test_the_mask_is_kept_as_bits():
    diffusion, method, _ = prepared()
    state = method.state()
    assert state["mask"].numel() == math.ceil(sum(p.numel() for p in diffusion.parameters()) / 8)
    again = SFRon()
    again.load_state(state)
    assert torch.equal(again._mask.flat, method._mask.flat)


def test_guidance_and_label_drop_without_a_null_label_are_refused_before_any_work():
    diffusion = tiny_models.diffusion(null=False)
    with pytest.raises(InputError, match="no null label"):
        SFRon(retain_null_drop=0.0).validate(diffusion)
    SFRon(retain_null_drop=0.0, fisher_guidance_scale=1.0).validate(diffusion)
