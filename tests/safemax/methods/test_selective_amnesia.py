from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from safemax.data.batches import Batch, Rows
from safemax.diffusion.model import Diffusion
from safemax.errors import InputError
from safemax.methods import create
from safemax.methods.selective_amnesia import SelectiveAmnesia
from safemax.training.hooks import Folders
from safemax.training.method import Losses, Terms
from safemax.training.settings import Training
from tests.support import tiny_models

CHW = 64
CHEAP = {"replay_images": 3, "replay_steps": 2, "fisher_images": 4, "fisher_times": 4}


def prepared(diffusion: Diffusion, **knobs: Any) -> SelectiveAmnesia:
    method = SelectiveAmnesia(**{**CHEAP, **knobs})
    torch.manual_seed(0)
    method.prepare(diffusion, tiny_models.batches())
    return method


def moved(diffusion: Diffusion, seed: int = 1) -> None:
    """Move every weight a little, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in diffusion.parameters():
            p.add_(0.01 * torch.randn(p.shape, generator=generator))


def flat(tensors: Any) -> Tensor:
    return torch.cat([each.flatten() for each in tensors])


class Step:
    """What the trainer's optimizer step sees: the gradient that backward left, the terms, the noise and the predictions."""

    def __init__(self, method: SelectiveAmnesia, diffusion: Diffusion, batch: Batch) -> None:
        self.method, self.model = method, diffusion
        self.passes: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        diffuse, forward = diffusion.diffuse, diffusion.forward
        inputs: list[tuple[Tensor, Tensor]] = []
        diffusion.diffuse = lambda x0, t, eps: inputs.append((x0, eps)) or diffuse(x0, t, eps)  # type: ignore[func-returns-value, method-assign]

        def seen(x_t: Tensor, t: Tensor, c: Tensor) -> Tensor:
            self.passes.append((*inputs[-1], t, c))
            return forward(x_t, t, c)

        diffusion.forward = seen  # type: ignore[method-assign]
        self.terms = method.step(diffusion, batch, self._optimizer_step)
        self.gradient = flat(p.grad for p in diffusion.parameters())
        del diffusion.diffuse, diffusion.forward

    def _optimizer_step(self, losses: Losses, batch: Batch, *, clip: float | None = None) -> Terms:
        return self.method.backward(losses(self.model, batch), self.model, lambda loss: loss.backward())


def test_the_objective_and_its_gradient_are_the_official_ones() -> None:
    # the official objective: S(x_f, t, c_f, e_f) + gamma S(x_r, t, c_r, e_r) + lambda sum F_S (theta - theta_star)^2, where S sums
    # over pixels and F_S is the Fisher information of that sum, CHW times what is kept. `pixel_sum` descends exactly this.
    diffusion = tiny_models.diffusion()
    method = prepared(diffusion, lmbda=10.0, gamma=2.0, pixel_sum=True)
    theta_star, fisher = [p.detach().clone() for p in diffusion.parameters()], [CHW * f for f in method._fisher]
    moved(diffusion)
    step = Step(method, diffusion, tiny_models.batch())
    sums = [
        (e - diffusion(diffusion.diffuse(x0, t, e), t, c)).square().sum((1, 2, 3)).mean(0)
        for x0, e, t, c in step.passes
    ]
    penalty = sum((f * (p - s) ** 2).sum() for p, f, s in zip(diffusion.parameters(), fisher, theta_star, strict=True))
    official = sums[0] + 2.0 * sums[1] + 10.0 * penalty
    expected = flat(torch.autograd.grad(official, list(diffusion.parameters())))
    assert torch.stack(list(step.terms.values())).sum().item() == pytest.approx(official.item(), rel=1e-5)
    torch.testing.assert_close(step.gradient, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


def test_by_default_the_objective_is_the_official_one_over_the_pixels() -> None:
    def gradient(pixel_sum: bool) -> Tensor:
        diffusion = tiny_models.diffusion()
        method = prepared(diffusion, pixel_sum=pixel_sum)
        moved(diffusion)
        torch.manual_seed(2)
        return Step(method, diffusion, tiny_models.batch()).gradient

    torch.testing.assert_close(CHW * gradient(False), gradient(True), rtol=1e-3, atol=1e-4)


def test_the_elastic_gradient_is_that_of_autograd() -> None:
    # lambda sum F d^2 with lambda = 3, F = 2 and d = 0.5 everywhere: value 3 * 2 * 0.25 * n, gradient 2 * 3 * 2 * 0.5 = 6
    diffusion = tiny_models.diffusion()
    method = prepared(diffusion, lmbda=3.0)
    method._fisher = [torch.full_like(p, 2.0) for p in diffusion.parameters()]
    method._theta_star = [p.detach() - 0.5 for p in diffusion.parameters()]
    assert method._consolidate(diffusion).item() == pytest.approx(
        1.5 * sum(p.numel() for p in diffusion.parameters()), rel=1e-4
    )
    torch.testing.assert_close(
        flat(p.grad for p in diffusion.parameters()), torch.full((18649,), 6.0), rtol=1e-4, atol=0
    )


def test_the_elastic_gradient_is_zero_at_the_weights_remembered() -> None:
    diffusion = tiny_models.diffusion()
    assert prepared(diffusion)._consolidate(diffusion).item() == 0
    assert not flat(p.grad for p in diffusion.parameters()).any()


def test_the_elastic_gradient_is_added_once_and_counts_in_the_clip() -> None:
    # With two passes a step, and lambda so large that the elastic gradient is all there is, the clipped gradient points
    # along F (theta - theta_star) and has the norm of the clip.
    seen: list[Tensor] = []

    class Watched(SelectiveAmnesia):
        def step(self, diffusion: Diffusion, batch: Batch, optimizer_step: Any) -> Terms:
            moved(diffusion)
            return super().step(diffusion, batch, optimizer_step)

        def constrain(self, diffusion: Diffusion) -> None:
            weights = zip(diffusion.parameters(), self._fisher, self._theta_star, strict=True)
            pull = flat(f * (p.detach() - s) for p, f, s in weights)
            gradient = flat(p.grad for p in diffusion.parameters())
            seen.append(torch.stack([gradient.norm(), torch.cosine_similarity(gradient, pull, dim=0)]))

    training = Training(steps=1, batch_size=8, accumulate=2, clip=0.25, device="cpu")
    tiny_models.train(tiny_models.diffusion(), Watched(**{**CHEAP, "lmbda": 1e12}), training)  # type: ignore[arg-type]
    torch.testing.assert_close(seen[0], torch.tensor([0.25, 1.0]), rtol=1e-3, atol=0)


def test_splitting_a_step_leaves_the_elastic_gradient_as_it_is() -> None:
    def gradient(parts: int) -> Tensor:
        diffusion = tiny_models.diffusion()
        method = prepared(diffusion, gamma=0.0)
        moved(diffusion)
        method.losses = lambda diffusion, batch: iter([{"none": 0 * flat(diffusion.parameters()).sum()}])  # type: ignore[method-assign]

        def optimizer_step(losses: Losses, batch: Batch, *, clip: float | None = None) -> Terms:
            for part in batch.split(parts):
                method.backward(losses(diffusion, part), diffusion, lambda loss: (loss / parts).backward())
            return {}

        method.step(diffusion, tiny_models.batch(), optimizer_step)
        return flat(p.grad for p in diffusion.parameters())

    assert torch.equal(gradient(1), gradient(2))


def test_the_forget_rows_are_uniform_noise_under_their_own_label() -> None:
    diffusion = tiny_models.diffusion()
    rows = Rows(torch.full((400, 1, 8, 8), 9.0), torch.zeros(400, dtype=torch.int64))
    (x0, _, _, c), _ = Step(prepared(diffusion), diffusion, Batch(rows, tiny_models.batch().retain)).passes
    # U(-1, 1) has the standard deviation 1 / sqrt(3)
    assert x0.abs().max() <= 1
    assert x0.std().item() == pytest.approx(1 / math.sqrt(3), abs=0.005)
    assert not c.any()


def test_replay_rows_are_the_models_own_images_of_the_retain_rows_classes() -> None:
    diffusion = tiny_models.diffusion()
    method = prepared(diffusion)
    _, (x0, _, _, c) = Step(method, diffusion, tiny_models.batch(4, 8)).passes
    assert c.tolist() == tiny_models.batch(4, 8).retain.c.tolist()
    for image, k in zip(x0, c, strict=True):
        assert any(torch.allclose(image, each / 127.5 - 1, atol=1e-6) for each in method._replay[k].float())


def test_both_terms_share_their_steps_and_no_label_is_dropped() -> None:
    diffusion = tiny_models.diffusion()
    (_, e_f, t_f, c_f), (_, e_r, t_r, c_r) = Step(prepared(diffusion), diffusion, tiny_models.batch(40, 40)).passes
    assert torch.equal(t_f, t_r)
    assert not torch.equal(e_f, e_r)
    assert (torch.cat([c_f, c_r]) < 3).all()


def test_the_null_label_never_has_a_gradient() -> None:
    diffusion = tiny_models.diffusion()
    Step(prepared(diffusion), diffusion, tiny_models.batch())
    assert not diffusion.denoiser.class_embedding.weight.grad[3].any()


def test_the_fisher_information_is_that_of_the_pixel_sum_over_the_pixels() -> None:
    # One image, all t in one pass and no noise but that of the seed: F kept = (sum_t grad S)^2 / CHW.
    diffusion = tiny_models.diffusion(steps=6).eval()
    method = SelectiveAmnesia(**{**CHEAP, "fisher_images": 1, "fisher_times": 0})  # type: ignore[arg-type]
    found: list[Tensor] = []
    diffuse = diffusion.diffuse
    diffusion.diffuse = lambda x0, t, eps: found.extend((x0, eps)) or diffuse(x0, t, eps)  # type: ignore[func-returns-value, method-assign]
    seen: list[Tensor] = []
    forward = diffusion.forward
    diffusion.forward = lambda x_t, t, c: seen.append(c) or forward(x_t, t, c)  # type: ignore[func-returns-value, method-assign]
    method.prepare(diffusion, tiny_models.batches())
    x0, eps = found[-2:]
    t = torch.arange(6)
    loss = (eps - forward(diffuse(x0, t, eps), t, seen[-1])).square().sum()
    expected = flat(torch.autograd.grad(loss, list(diffusion.parameters()))).square() / CHW
    torch.testing.assert_close(flat(method._fisher), expected, rtol=1e-4, atol=1e-6 * expected.max().item())


@pytest.mark.parametrize(("unit", "least"), [(True, 0.0), (False, -1.0)])
def test_the_papers_fisher_information_is_fed_images_between_0_and_1(unit: bool, least: float) -> None:
    diffusion = tiny_models.diffusion()
    inputs: list[Tensor] = []
    diffuse = diffusion.diffuse
    diffusion.diffuse = lambda x0, t, eps: inputs.append(x0) or diffuse(x0, t, eps)  # type: ignore[func-returns-value, method-assign]
    prepared(diffusion, fisher_unit_range=unit)
    assert torch.stack([x0.min() for x0 in inputs]).min().item() == pytest.approx(least, abs=0.1)


def test_the_fisher_information_says_how_good_it_is() -> None:
    diffusion = tiny_models.diffusion()
    method = prepared(diffusion)
    assert 0 < method.fisher_error < 2
    other = SelectiveAmnesia()
    other.load_state(method.state())
    assert other.fisher_error == pytest.approx(method.fisher_error)


def test_ten_classes_share_one_prior(tmp_path: Any) -> None:
    def prepared_for(forget: int, **knobs: Any) -> float:
        method = SelectiveAmnesia(**{**CHEAP, **knobs})
        training = Training(steps=1, batch_size=8, device="cpu")
        tiny_models.train(tiny_models.diffusion(), method, training, forget=(forget,), folders=Folders(priors=tmp_path))
        return method.fisher_error

    first = prepared_for(0)
    assert len(list(tmp_path.iterdir())) == 1
    assert prepared_for(1, lmbda=3.0) == pytest.approx(first, rel=1e-6)
    assert len(list(tmp_path.iterdir())) == 1
    prepared_for(1, fisher_times=6)
    assert len(list(tmp_path.iterdir())) == 2


def test_replay_images_are_kept_as_bytes() -> None:
    state = prepared(tiny_models.diffusion()).state()
    assert state["replay"].dtype == torch.uint8
    assert state["replay"].shape == (3, 3, 1, 8, 8)


def test_guided_replay_needs_a_null_label() -> None:
    with pytest.raises(InputError, match="no null label"):
        create("selective_amnesia").validate(tiny_models.diffusion(null=False))
    create("selective_amnesia", replay_guidance_scale=1.0).validate(tiny_models.diffusion(null=False))
