from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler

from safemax.data.batches import derive_seed
from safemax.diffusion.model import Diffusion
from safemax.diffusion.sampling import Sampler, predict, sample
from safemax.errors import InputError
from tests.support import tiny_models


class Analytic(torch.nn.Module):
    """A denoiser known in closed form, in the place of the network."""

    def __init__(self, eps):
        super().__init__()
        self.eps = eps

    def forward(self, x, t, class_labels, return_dict):
        return (self.eps(x, t),)


def with_denoiser(eps):
    model = tiny_models.diffusion()
    model.denoiser = Analytic(lambda x, t: eps(model, x, t))
    return model


LABELS = torch.arange(3).repeat(20)
UNCLIPPED = {"guidance_scale": 1.0, "clip": False}


def test_guidance_is_linear_with_the_null_row_at_0_and_the_class_row_at_1():
    model = tiny_models.diffusion().eval()
    x, t, c = torch.randn(2, 1, 8, 8), torch.tensor([10, 500]), torch.tensor([0, 1])
    with torch.no_grad():
        eps_c, eps_null = model(x, t, c), model(x, t, model.null(c))
        torch.testing.assert_close(predict(model, x, t, c, 1.0), eps_c)
        torch.testing.assert_close(predict(model, x, t, c, 0.0), eps_null)
        torch.testing.assert_close(predict(model, x, t, c, 3.0), 3 * eps_c - 2 * eps_null)


def test_guidance_on_a_model_without_null_label_is_an_error():
    with pytest.raises(InputError, match="guidance_scale = 3 needs a null label"):
        sample(tiny_models.diffusion(null=False), LABELS, Sampler(guidance_scale=3.0), seed=0)


@pytest.mark.parametrize("steps", [50, 1000])
def test_eta_1_is_ancestral_sampling_with_the_small_variance(steps):
    model = with_denoiser(lambda m, x, t: (1 - m.alpha_bar[t]).sqrt().view(-1, 1, 1, 1) * x)
    ours = sample(model, LABELS[:1], Sampler("ddpm", steps, 1.0, 0.0, False), seed=0)
    rule = DDPMScheduler.from_config(
        model.schedule.config, variance_type="fixed_small", clip_sample=False, timestep_spacing="leading"
    )
    rule.set_timesteps(steps)
    # The same generators as sample: noise from (seed, 0), the way from (seed, 1, first row of the batch).
    x = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(derive_seed(0, 0)))
    generator = torch.Generator().manual_seed(derive_seed(0, 1, 0))
    for t in rule.timesteps:
        eps = (1 - model.alpha_bar[t]).sqrt() * x
        x = rule.step(eps, t, x, generator=generator).prev_sample
    torch.testing.assert_close(ours, x.clamp(-1, 1), rtol=1e-3, atol=1e-3)


def test_zero_noise_freezes_the_walk_and_saturates_the_image():
    # eps = 0, eta = 0: x_0 = x_T / sqrt(alpha_bar_T) = 157.4 x_T, so all but the smallest pixels leave [-1, 1]
    model = with_denoiser(lambda m, x, t: torch.zeros_like(x))
    images = sample(model, LABELS, Sampler("ddim", 1000, **UNCLIPPED), seed=0)
    assert (images.abs() == 1).float().mean() > 0.98


def test_the_score_of_a_gaussian_returns_its_starting_noise():
    model = with_denoiser(lambda m, x, t: (1 - m.alpha_bar[t]).sqrt().view(-1, 1, 1, 1) * x)
    noise = sample(model, LABELS, Sampler("ddim", 1000, **UNCLIPPED), seed=0)
    again = sample(model, LABELS, Sampler("ddim", 250, **UNCLIPPED), seed=0)
    assert torch.corrcoef(torch.stack([noise.flatten(), again.flatten()]))[0, 1] > 0.99
    # a clamped standard normal has standard deviation 0.7184 (variance 1 - 2 phi(1) = 0.516)
    assert noise.std() == pytest.approx(0.718, abs=0.02)


@pytest.mark.parametrize("name", ["ddim", "ddpm", "dpmpp"])
def test_a_known_image_is_recovered_by_every_sampler(name):
    x0 = 0.3
    model = with_denoiser(
        lambda m, x, t: (
            (x - m.alpha_bar[t].sqrt().view(-1, 1, 1, 1) * x0) / (1 - m.alpha_bar[t]).sqrt().view(-1, 1, 1, 1)
        )
    )
    images = sample(model, LABELS[:4], Sampler(name, 20, 1.0, 0.0, True), seed=0)
    torch.testing.assert_close(images, torch.full_like(images, x0), atol=0.02, rtol=0)


def test_the_same_seed_gives_the_same_images_and_another_does_not():
    model = tiny_models.diffusion()
    draw = lambda seed: sample(model, LABELS[:6], Sampler("ddpm", 5, 1.5, 0.0, True), seed=seed)  # noqa: E731
    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


def test_the_starting_noise_does_not_depend_on_the_batch_size():
    model = tiny_models.diffusion()
    one = sample(model, LABELS[:6], Sampler("ddim", 5), seed=0, batch_size=6)
    two = sample(model, LABELS[:6], Sampler("ddim", 5), seed=0, batch_size=4)
    torch.testing.assert_close(one, two, atol=1e-4, rtol=0)


def test_an_overflowing_model_gives_pixels_within_bounds():
    model = with_denoiser(lambda m, x, t: x * 1e30)
    images = sample(model, LABELS[:2], Sampler("ddim", 5, **UNCLIPPED), seed=0)
    assert images.isfinite().all()
    assert images.abs().max() <= 1


def test_a_walk_from_a_real_image_starts_where_it_is_told():
    model = with_denoiser(lambda m, x, t: torch.zeros_like(x))
    x0 = torch.full((2, 1, 8, 8), 0.5)
    images = sample(model, LABELS[:2], Sampler("ddim", 1000, **UNCLIPPED), seed=0, start=(x0, 0))
    # t0 = 0: x_t is x0 with noise of standard deviation 0.01, and one step takes it back by 1 / sqrt(alpha_bar_0)
    assert (images - 0.5).abs().max() < 0.05


@pytest.mark.parametrize("T", [1000, 200, 75, 40])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 10, 20, 37, 39, 40, 50, 75, 200, 400, 501, 600, 999, 1000])
@pytest.mark.parametrize("name", ["ddim", "ddpm", "dpmpp"])
def test_steps_begin_near_pure_noise_and_fall_to_the_image(T, steps, name):
    if steps > T:
        return
    times = Sampler(name, steps).times(T)
    assert len(times) == steps
    assert (times.diff() < 0).all()
    assert times[-1] == 0 or steps == 1 or name == "dpmpp"
    # the DDIM code's begin a stride below T, which is at most a tenth of T
    assert times[0] == T - 1 or (T % steps == 0 and steps >= 10 and times[0] == T - T // steps)


def test_the_protocols_steps_are_the_ddim_codes():
    assert Sampler("ddim", 20).times(1000).tolist() == list(range(950, -1, -50))
    assert Sampler("ddpm", 50).times(1000).tolist() == list(range(980, -1, -20))
    assert Sampler("ddpm", 1000).times(1000).tolist() == list(range(999, -1, -1))


@pytest.mark.parametrize(("name", "steps"), [("ddim", 7), ("ddpm", 37), ("dpmpp", 7), ("ddim", 2), ("dpmpp", 40)])
@pytest.mark.parametrize("T", [1000, 40])
def test_uneven_steps_take_noise_to_the_image_that_the_model_knows(name, steps, T):
    x0 = 0.3
    model = tiny_models.diffusion(steps=T)
    model.denoiser = Analytic(
        lambda x, t: (
            (x - model.alpha_bar[t].sqrt().view(-1, 1, 1, 1) * x0) / (1 - model.alpha_bar[t]).sqrt().view(-1, 1, 1, 1)
        )
    )
    images = sample(model, LABELS[:3], Sampler(name, steps, **UNCLIPPED), seed=0)
    torch.testing.assert_close(images, torch.full_like(images, x0), atol=0.05, rtol=0)


@pytest.mark.parametrize("steps", [333, 600])
def test_uneven_ddim_follows_the_same_path_as_all_steps(steps):
    # the score of a Gaussian keeps its starting noise; a wrong stride would change its scale
    model = with_denoiser(lambda m, x, t: (1 - m.alpha_bar[t]).sqrt().view(-1, 1, 1, 1) * x)
    every, some = (sample(model, LABELS[:6], Sampler("ddim", n, **UNCLIPPED), seed=0) for n in (1000, steps))
    torch.testing.assert_close(some, every, atol=0.02, rtol=0)


@pytest.mark.parametrize("name", ["ddim", "ddpm", "dpmpp"])
def test_more_steps_than_the_model_has_are_refused(name):
    model = tiny_models.diffusion(steps=40)
    with pytest.raises(InputError, match="takes 50 denoising steps, but the model has T = 40"):
        sample(model, LABELS[:1], Sampler(name, 50), seed=0)


@pytest.mark.parametrize("betas", ["sigmoid", "squaredcos_cap_v2", "laplace"])
@pytest.mark.parametrize("name", ["ddim", "ddpm", "dpmpp"])
def test_every_schedule_of_ddpm_can_be_sampled(betas, name):
    tiny = tiny_models.diffusion()
    model = Diffusion(tiny.denoiser, DDPMScheduler(beta_schedule=betas, clip_sample=False), tiny.class_names)
    assert sample(model, LABELS[:1], Sampler(name, 4), seed=0).isfinite().all()
