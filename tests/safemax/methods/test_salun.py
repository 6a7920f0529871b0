from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from safemax.data.batches import Batch
from safemax.diffusion.model import Diffusion
from safemax.errors import InputError
from safemax.methods import create
from safemax.methods.salun import SalUn, largest
from safemax.training.hooks import Folders
from safemax.training.method import Method
from safemax.training.settings import Training
from tests.support import tiny_models

CHW = 64


def prepared(diffusion: Diffusion, **knobs: Any) -> SalUn:
    method = SalUn(**{"mask_batches": 2, **knobs})
    method.prepare(diffusion, tiny_models.batches())
    return method


def flat(tensors: Any) -> Tensor:
    return torch.cat([each.flatten() for each in tensors])


class Recorded:
    """The passes of a model, in order: noise, noised images, labels and prediction of each."""

    def __init__(self, diffusion: Diffusion) -> None:
        self.noises: list[Tensor] = []
        self.passes: list[tuple[Tensor, Tensor, Tensor]] = []
        diffuse, forward = diffusion.diffuse, diffusion.forward

        def seen_diffuse(x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
            self.noises.append(eps)
            return diffuse(x0, t, eps)

        def seen_forward(x_t: Tensor, t: Tensor, c: Tensor) -> Tensor:
            self.passes.append((x_t, c, forward(x_t, t, c)))
            return self.passes[-1][2]

        diffusion.diffuse, diffusion.forward = seen_diffuse, seen_forward  # type: ignore[method-assign]


def total(groups: Iterator[dict[str, Tensor]]) -> Tensor:
    return torch.stack([value for group in groups for value in group.values()]).sum()


def test_the_loss_is_the_official_one() -> None:
    # the official loss: mean((out - target)^2) + 1e-3 * mean over rows of sum over pixels (eps - out)^2, with the official alpha
    # converted to our means: 1e-3 * CHW.
    diffusion = tiny_models.diffusion()
    method = prepared(diffusion, alpha=1e-3 * CHW)
    seen = Recorded(diffusion)
    ours = total(method.losses(diffusion, tiny_models.batch()))
    (_, _, retain), (x_target, c_target, target), (x_own, c_own, own) = seen.passes
    official = torch.nn.MSELoss()(own, target.detach()) + 1e-3 * (seen.noises[0] - retain).square().sum((1, 2, 3)).mean(
        0
    )
    assert ours.item() == pytest.approx(official.item(), rel=1e-5)
    assert torch.equal(x_target, x_own)
    assert c_target.tolist() == [1] * 4
    assert c_own.tolist() == [0] * 4


def test_gradient_ascent_is_the_official_one_over_the_pixels() -> None:
    # the official loss: -sum-loss(D_f) + alpha sum-loss(D_r), of which ours is a CHW-th
    diffusion = tiny_models.diffusion()
    method = prepared(diffusion, variant="gradient_ascent", alpha=1e-3, cap=1e6)
    seen = Recorded(diffusion)
    ours = total(method.losses(diffusion, tiny_models.batch()))
    retain, forget = (
        (e - out).square().sum((1, 2, 3)).mean(0) for e, (_, _, out) in zip(seen.noises, seen.passes, strict=True)
    )
    assert ours.item() == pytest.approx((-forget + 1e-3 * retain).item() / CHW, rel=1e-5)


def test_the_official_alpha_is_3_072_of_our_mean_on_cifar() -> None:
    # d loss / d (mean retain loss) = 1e-3 * 3 * 32 * 32
    assert SalUn().alpha == pytest.approx(1e-3 * 3 * 32 * 32)


def test_the_papers_alpha_scales_with_the_size_of_an_image() -> None:
    diffusion, batch = tiny_models.diffusion(), tiny_models.batch()
    losses = []
    for knobs in ({"alpha": 1e-3, "pixel_sum": True}, {"alpha": 0.064}):  # 1e-3 x 1 x 8 x 8
        method = prepared(diffusion, **knobs)
        torch.manual_seed(0)
        losses.append(next(iter(method.losses(diffusion, batch)))["retain"].item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_the_paper_drops_labels_of_forget_rows_and_targets_apart() -> None:
    diffusion = tiny_models.diffusion()
    method = prepared(diffusion, forget_null_drop=0.5)
    seen = Recorded(diffusion)
    torch.manual_seed(0)
    list(method.losses(diffusion, tiny_models.batch(40, 4)))
    (_, target, _), (_, own, _) = seen.passes[1:]
    assert set(target.tolist()) == {1, 3}
    assert set(own.tolist()) == {0, 3}
    assert ((target == 3) != (own == 3)).any()


def test_one_graph_is_alive_at_a_time() -> None:
    diffusion = tiny_models.diffusion()
    groups = prepared(diffusion).losses(diffusion, tiny_models.batch())
    first = next(groups)
    assert list(first) == ["retain"]
    assert list(next(groups)) == ["forget"]


def test_the_largest_half_is_exact_and_ties_go_to_the_first() -> None:
    # int(0.5 * 7) = 3 of 7: the 5, and the first two of four 2s
    values = torch.tensor([2.0, 0.0, 2.0, 5.0, 2.0, 2.0, 1.0])
    assert largest(values, 0.5).tolist() == [True, False, True, True, False, False, False]


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 1.0])
def test_the_mask_holds_its_share_of_all_weights_together(share: float) -> None:
    diffusion = tiny_models.diffusion()
    method = prepared(diffusion, mask_ratio=share)
    n = sum(p.numel() for p in diffusion.parameters())
    assert int(method._mask.flat.sum()) == int(share * n)
    parts = [
        part.float().mean().item() for part in method._mask.flat.split([p.numel() for p in diffusion.parameters()])
    ]
    assert share == 1.0 or max(parts) - min(parts) > 0.5


def test_saliency_is_the_signed_sum_of_clipped_batch_gradients() -> None:
    # the official saliency: | sum_b g_b / max(1, ||g_b||) | of the loss summed over pixels, here with w = 2 (g = 3)
    diffusion = tiny_models.diffusion().eval()
    torch.manual_seed(5)
    saliency = torch.zeros(sum(p.numel() for p in diffusion.parameters()))
    for step in range(2):
        rows = tiny_models.batches()(step).forget
        e, t = torch.randn_like(rows.x0), diffusion.times(4)
        x_t = diffusion.diffuse(rows.x0, t, e)
        out = (1 + 2) * diffusion(x_t, t, rows.c) - 2 * diffusion(x_t, t, diffusion.null(rows.c))
        g = flat(torch.autograd.grad((e - out).square().sum((1, 2, 3)).mean(0), list(diffusion.parameters())))
        saliency += g / max(1.0, g.norm().item())
    torch.manual_seed(5)
    method = prepared(diffusion, mask_guidance_scale=3.0)
    # near the threshold rounding decides: all but a handful of 18,649 agree
    assert (method._mask.flat == largest(saliency.abs(), 0.5)).float().mean() > 0.999


def test_a_masked_weight_stays_bit_for_bit() -> None:
    diffusion = tiny_models.diffusion()
    before = flat(diffusion.parameters()).detach().clone()
    method = SalUn(mask_batches=2, mask_ratio=0.3)
    tiny_models.train(diffusion, method, Training(steps=3, batch_size=8, device="cpu"))
    after = flat(diffusion.parameters()).detach()
    assert torch.equal(after[~method._mask.flat], before[~method._mask.flat])
    assert (after[method._mask.flat] != before[method._mask.flat]).float().mean() > 0.9


def test_the_gradient_is_clipped_before_it_is_masked() -> None:
    # Clipped to 1, then masked, the applied norm is below 1 (SFR-on masks first and gets 1).
    norms = []

    class Watched(SalUn):
        def constrain(self, diffusion: Diffusion) -> None:
            norms.append(flat(p.grad for p in diffusion.parameters()).norm().item())
            super().constrain(diffusion)
            norms.append(flat(p.grad for p in diffusion.parameters()).norm().item())

    training = Training(steps=1, batch_size=8, clip=0.01, device="cpu")
    tiny_models.train(tiny_models.diffusion(), Watched(mask_batches=1), training)
    assert norms[0] == pytest.approx(0.01, rel=1e-3)
    assert 0 < norms[1] < norms[0]


def test_weight_decay_is_refused_because_it_would_move_masked_weights() -> None:
    diffusion = tiny_models.diffusion()
    before = diffusion.digest()
    with pytest.raises(InputError, match=r"weight_decay = 0.1 is not allowed with SalUn"):
        tiny_models.train(diffusion, SalUn(), Training(steps=1, weight_decay=0.1, device="cpu"))
    assert diffusion.digest() == before


def test_the_mask_is_kept_as_bits() -> None:
    diffusion = tiny_models.diffusion()
    method = prepared(diffusion)
    n = len(method._mask.flat)
    assert method.state()["mask"].nbytes == -(-n // 8)
    other = SalUn()
    other.load_state(method.state())
    assert torch.equal(other._mask.flat, method._mask.flat)


@pytest.mark.parametrize("preset", ["paper", "paper_gradient_ascent"])
def test_the_papers_presets_need_a_null_label(preset: str) -> None:
    method: Method = create("salun", preset=preset, retain_null_drop=0.0)
    with pytest.raises(InputError, match="no null label"):
        method.validate(tiny_models.diffusion(null=False))
    create("salun", retain_null_drop=0.0).validate(tiny_models.diffusion(null=False))


def test_ascent_leaves_an_ignorant_row_alone() -> None:
    # eps_pred = eps + 2 misses by 4 > cap 1: the forget term is -1, with no gradient
    diffusion = tiny_models.diffusion()
    method = prepared(diffusion, variant="gradient_ascent")
    noises: list[Tensor] = []
    diffuse = diffusion.diffuse
    diffusion.diffuse = lambda x0, t, eps: noises.append(eps) or diffuse(x0, t, eps)  # type: ignore[func-returns-value, method-assign]
    diffusion.forward = lambda x_t, t, c: noises[-1] + 2  # type: ignore[method-assign]
    _, forget = method.losses(diffusion, Batch(tiny_models.batch().forget, tiny_models.batch().retain))
    assert forget["forget"].item() == pytest.approx(-1.0)


def test_a_mask_is_kept_for_runs_on_the_same_class_rows_and_mask_knobs(tmp_path: Path) -> None:
    def kept(forget: int = 0, batch_size: int = 8, **knobs: Any) -> int:
        training = Training(steps=1, batch_size=batch_size, device="cpu")
        method = SalUn(**{"mask_batches": 1, **knobs})
        tiny_models.train(tiny_models.diffusion(), method, training, forget=(forget,), folders=Folders(priors=tmp_path))
        return len(list(tmp_path.iterdir()))

    assert kept() == 1
    assert kept(alpha=1.0) == 1
    assert kept(mask_ratio=0.3) == 2
    assert kept(forget=1) == 3
    assert kept(batch_size=4) == 4
