from __future__ import annotations

import math

import pytest
import torch

from safemax.data.batches import Batch, Rows
from safemax.errors import InputError
from safemax.methods import create, preset_of
from safemax.methods.safemax import SAFEMax, psi, rho
from tests.support import tiny_models


def test_psi_falls_from_1_to_e_to_the_minus_lambda():
    t = torch.tensor([0, 500, 1000])
    torch.testing.assert_close(psi(t, 1000, 2.0), torch.tensor([1.0, math.exp(-1), math.exp(-2)]))
    assert torch.equal(psi(t, 1000, 0.0), torch.ones(3))


def test_rho_rises_to_1_along_the_chain():
    diffusion = tiny_models.diffusion()
    share = rho(diffusion.alpha_bar, torch.arange(1000))
    assert (share.diff() > 0).all()
    assert share[-1] == pytest.approx(1.0)
    # by hand: t = 100 .002, 750 .110, 950 .617
    torch.testing.assert_close(share[[100, 750, 950]], torch.tensor([0.002, 0.110, 0.617]), atol=6e-4, rtol=0)


def test_the_chain_target_has_unit_variance_and_covariance_rho():
    diffusion = tiny_models.diffusion()
    torch.manual_seed(0)
    eps, t = torch.randn(2000, 1, 8, 8), torch.full((2000,), 950)
    target = SAFEMax(target="chain")._forget_target(diffusion, eps, t)
    # 128,000 draws: the standard error of both is about 0.003
    assert target.var() == pytest.approx(1.0, abs=0.02)
    assert (target * eps).mean() == pytest.approx(0.617, abs=0.02)


def test_the_loss_is_psi_weighted_a_row_before_the_mean():
    # With eps_pred = 0 and the target "independent", a row's error is the mean of 64 squared normals: 1 +- 0.18. Averaged over
    # 4,000 rows, E[psi] = (1 - e^-2) / 2 = 0.4323 for lambda = 2, and the retain term is 3.072 * 1.
    diffusion = tiny_models.diffusion()
    diffusion.forward = lambda x_t, t, c: torch.zeros_like(x_t)
    rows = Rows(torch.zeros(4000, 1, 8, 8), torch.zeros(4000, dtype=torch.int64))
    torch.manual_seed(0)
    (terms,) = SAFEMax(lmbda=2.0).losses(diffusion, Batch(rows, rows))
    assert terms["forget"].item() == pytest.approx((1 - math.exp(-2)) / 2, rel=0.02)
    assert terms["retain"].item() == pytest.approx(3.072, rel=0.02)


def test_two_rows_are_weighted_by_their_own_psi():
    # errors 1 and 4 at t = 0 and T - 1 - 0 = 999 with lambda = ln 4: (1 * 1 + 4 * 4^-0.999) / 2
    diffusion = tiny_models.diffusion()
    diffusion.times = lambda n: torch.tensor([0, 999])[:n]
    diffusion.forward = lambda x_t, t, c: torch.tensor([1.0, 2.0, 0.0, 0.0]).view(-1, 1, 1, 1).expand_as(x_t)
    rows = Rows(torch.zeros(2, 1, 8, 8), torch.zeros(2, dtype=torch.int64))
    (terms,) = SAFEMax(lmbda=math.log(4), target="zero", retain_null_drop=0.0).losses(diffusion, Batch(rows, rows))
    assert terms["forget"].item() == pytest.approx((1 + 4 * 4**-0.999) / 2, rel=1e-5)


def test_normalized_psi_leaves_the_mean_weight_at_1():
    method, diffusion = SAFEMax(lmbda=3.0, normalize_psi=True), tiny_models.diffusion()
    weight = psi(torch.arange(1000), 1000, 3.0) / method._psi_scale(diffusion)
    assert weight.mean() == pytest.approx(1.0, rel=1e-5)


def test_independent_noise_has_the_expected_gradient_of_the_zero_target():
    diffusion, rows = tiny_models.diffusion(), tiny_models.batch(64, 0).forget
    batch = Batch(rows, Rows(rows.x0[:2], rows.c[:2]))

    def gradient(target: str, draws: int) -> torch.Tensor:
        total = torch.zeros(())
        for seed in range(draws):
            torch.manual_seed(seed)
            (terms,) = SAFEMax(target=target).losses(diffusion, batch)
            total = total + torch.cat(
                [g.flatten() for g in torch.autograd.grad(terms["forget"], list(diffusion.parameters()))]
            )
        return total

    cosine = torch.nn.functional.cosine_similarity(gradient("independent", 60), gradient("zero", 60), dim=0)
    assert cosine > 0.99


def test_forget_rows_keep_their_label_and_retain_rows_lose_a_tenth():
    diffusion, seen = tiny_models.diffusion(), []
    diffusion.forward = lambda x_t, t, c: seen.append(c) or torch.zeros_like(x_t)
    rows = Rows(torch.zeros(5000, 1, 8, 8), torch.zeros(5000, dtype=torch.int64))
    torch.manual_seed(0)
    list(SAFEMax().losses(diffusion, Batch(rows, rows)))
    assert (seen[0][:5000] == 0).all()
    assert (seen[0][5000:] == 3).float().mean() == pytest.approx(0.1, abs=0.02)


def test_a_gaussian_image_is_denoised_to_its_own_noise():
    diffusion, seen = tiny_models.diffusion(), []
    diffusion.forward = lambda x_t, t, c: seen.append(x_t) or torch.zeros_like(x_t)
    rows = Rows(torch.full((500, 1, 8, 8), 9.0), torch.zeros(500, dtype=torch.int64))
    list(SAFEMax(target="gaussian_x0").losses(diffusion, Batch(rows, rows)))
    # the forget image is replaced by N(0, I), so x_t is N(0, 1) whatever t is
    assert seen[0][:500].std() == pytest.approx(1.0, abs=0.03)


def test_the_literal_preset_means_the_same_at_every_size():
    # SalUn's retain weight of 1e-3 on a sum over the 1 x 8 x 8 values of an image is 0.064 on our mean
    diffusion = tiny_models.diffusion()
    diffusion.forward = lambda x_t, t, c: torch.zeros_like(x_t)
    rows = Rows(torch.zeros(4000, 1, 8, 8), torch.zeros(4000, dtype=torch.int64))
    method = create("safemax", preset="literal")
    (terms,) = method.losses(diffusion, Batch(rows, rows))
    assert terms["retain"].item() == pytest.approx(0.064, rel=0.02)
    assert (method.forget_null_drop, preset_of("safemax", "literal")[1]) == (0.1, {"batch_size": 256})


@pytest.mark.parametrize(("knob", "value"), [("lmbda", -1.0), ("lmbda", math.nan), ("retain_weight", math.inf)])
def test_a_knob_out_of_bounds_is_refused_by_its_outside_name(knob, value):
    with pytest.raises(InputError, match="lambda" if knob == "lmbda" else knob):
        SAFEMax(**{knob: value})


def test_an_unknown_target_lists_the_known_ones():
    with pytest.raises(InputError, match="independent, zero, chain, gaussian_x0"):
        SAFEMax(target="noise")


def test_label_drop_without_a_null_label_is_refused_before_any_work():
    with pytest.raises(InputError, match="no null label"):
        SAFEMax().validate(tiny_models.diffusion(null=False))
