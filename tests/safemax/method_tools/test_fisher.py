from __future__ import annotations

from itertools import combinations

import pytest
import torch

from safemax.data.batches import Rows
from safemax.diffusion.model import Diffusion
from safemax.method_tools.fisher import diagonal, squared_sum, timestep_gradient
from tests.support import tiny_models


def flat(tensors: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([each.flatten() for each in tensors])


def short(rows: int = 2) -> tuple[Diffusion, Rows]:
    """Return a model of 12 diffusion steps, so that all of them take no time, and some rows."""
    batch = tiny_models.batch(rows, 1)
    return tiny_models.diffusion(steps=12).eval(), batch.forget


def test_many_t_in_one_pass_give_the_sum_of_one_t_at_a_time() -> None:
    diffusion, rows = short(1)
    t, eps = torch.arange(12), torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    c = rows.c.expand(12)
    together = flat(timestep_gradient(diffusion, rows.x0[0], c, t, eps))
    apart = sum(
        flat(timestep_gradient(diffusion, rows.x0[0], c[k : k + 1], t[k : k + 1], eps[k : k + 1])) for k in range(12)
    )
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-3 * together.abs().max().item())


def test_the_gradient_is_that_of_the_sum_over_pixels() -> None:
    # ||eps - eps_pred||^2 is 64 times its mean over 8x8 pixels, so F, its square, is 64^2 times the one of the mean.
    diffusion, rows = short(1)
    t, eps = torch.tensor([5]), torch.ones(1, 1, 8, 8)
    mean = (diffusion(diffusion.diffuse(rows.x0, t, eps), t, rows.c) - eps).square().mean()
    expected = 64 * flat(list(torch.autograd.grad(mean, list(diffusion.parameters()))))
    found = flat(timestep_gradient(diffusion, rows.x0[0], rows.c, t, eps))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("drawn", [2, 3])
def test_the_square_of_a_sum_is_estimated_without_bias(drawn: int) -> None:
    # Parts 1, 2, -4 and 7 sum to 6. For 2 of 4: 2 q + 6 (s^2 - q), whose mean over the 6 pairs must be 36.
    parts = [torch.tensor([value]) for value in (1.0, 2.0, -4.0, 7.0)]
    draws = [squared_sum([[each] for each in chosen], drawn, 4)[0] for chosen in combinations(parts, drawn)]
    assert torch.stack(draws).mean().item() == pytest.approx(36.0)


def test_two_parts_of_three_by_hand() -> None:
    # s = 1 + 3 = 4, q = 1 + 9 = 10: 3/2 * 10 + (3 * 2)/(2 * 1) * (16 - 10) = 15 + 18
    assert squared_sum([[torch.tensor(1.0)], [torch.tensor(3.0)]], 2, 3)[0].item() == pytest.approx(33.0)


def test_all_parts_give_the_square_itself() -> None:
    assert squared_sum([[torch.tensor(1.0)], [torch.tensor(-3.0)]], 2, 2)[0].item() == 4.0


def test_all_t_do_not_depend_on_how_they_are_cut_into_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    # The noise of a t would differ between the cuts; without noise both must give the same.
    monkeypatch.setattr(torch, "randn", torch.zeros)
    diffusion, rows = short()
    diffusion.double()
    rows = Rows(rows.x0.double(), rows.c)
    whole, cut = (flat(diagonal(diffusion, rows, batch=batch)[0]) for batch in (12, 5))
    torch.testing.assert_close(cut, whole, rtol=1e-4, atol=1e-6 * whole.max().item(), check_dtype=False)


def test_all_t_are_taken_where_the_last_pass_is_short() -> None:
    # 12 t in passes of 5: three passes of four, not two of them
    diffusion, rows = short(1)
    seen: list[int] = []
    diffuse = diffusion.diffuse
    diffusion.diffuse = lambda x0, t, eps: seen.extend(t.tolist()) or diffuse(x0, t, eps)  # type: ignore[func-returns-value, method-assign]
    diagonal(diffusion, rows, batch=5)
    assert sorted(seen) == list(range(12))


def test_fewer_t_estimate_what_all_t_give(monkeypatch: pytest.MonkeyPatch) -> None:
    # Without noise the sum over all t is a number; 60 estimates from 4 of 12 t scatter around it, their mean by 0.3 %.
    monkeypatch.setattr(torch, "randn", torch.zeros)
    diffusion, rows = short(1)
    exact = flat(diagonal(diffusion, rows)[0]).sum()
    torch.manual_seed(0)
    many = Rows(rows.x0.expand(60, -1, -1, -1), rows.c.expand(60))
    estimate = flat(diagonal(diffusion, many, times=4)[0])
    assert (estimate >= 0).all()
    assert (estimate.sum() / exact).item() == pytest.approx(1.0, abs=0.02)


def test_the_stated_error_is_the_spread_between_estimates() -> None:
    # The root mean square distance of estimates from independent images to their mean, over its norm.
    diffusion = tiny_models.diffusion(steps=12).eval()
    images = torch.rand(60, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    torch.manual_seed(0)
    found = [diagonal(diffusion, Rows(x0, torch.arange(10) % 3), times=6) for x0 in images.split(10)]
    estimates = torch.stack([flat(each) for each, _ in found])
    spread = (estimates - estimates.mean(0)).square().sum().div(len(found) - 1).sqrt() / estimates.mean(0).norm()
    stated = sum(error for _, error in found) / len(found)
    assert spread.item() == pytest.approx(stated, rel=0.5)


def test_one_image_has_no_error_to_state() -> None:
    diffusion, rows = short(1)
    assert torch.tensor(diagonal(diffusion, rows)[1]).isnan()
