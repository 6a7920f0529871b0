from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch

from safemax.diffusion.model import Diffusion
from safemax.diffusion.networks import architectures
from safemax.diffusion.sampling import Sampler, sample
from safemax.errors import InputError

SIZES = (8, 9, 12, 15, 16, 20, 28, 31, 32, 48, 63, 64)


def narrow(architecture: str) -> dict[str, object]:
    """Return an architecture with its levels and attention, but eight channels a level."""
    full = architectures.ARCHITECTURES[architecture]
    levels = len(full["block_out_channels"])
    return {**full, "block_out_channels": (8,) * levels, "layers_per_block": 1, "norm_num_groups": 4}


@pytest.fixture
def tiny_widths() -> Iterator[None]:
    tiny = {name: narrow(name) for name in architectures.ARCHITECTURES}
    with mock.patch.dict(architectures.ARCHITECTURES, tiny):
        yield


@pytest.mark.usefixtures("tiny_widths")
@pytest.mark.parametrize("size", SIZES)
def test_auto_trains_samples_and_loads_at_every_size(tmp_path: Path, size: int) -> None:
    torch.manual_seed(0)
    diffusion = Diffusion.create("auto", (1, size, size), ("a", "b"))
    x0, c = torch.rand(2, 1, size, size), torch.tensor([0, 1])
    diffusion.denoising_loss(x0, c).backward()
    assert all(each.grad is not None and each.grad.isfinite().all() for each in diffusion.parameters())
    diffusion.save(tmp_path)
    loaded = Diffusion.load(tmp_path)
    assert loaded.image_shape == (1, size, size)
    assert loaded.digest() == diffusion.digest()
    images = [sample(each, c, Sampler("ddim", 2), seed=0) for each in (diffusion, loaded)]
    assert images[0].shape == (2, 1, size, size)
    assert torch.equal(*images)


@pytest.mark.parametrize("size", range(8, 65))
def test_auto_pads_by_less_than_it_halves(size: int) -> None:
    name = architectures.fitting(size)
    levels = len(architectures.ARCHITECTURES[name]["block_out_channels"])
    assert -size % 2 ** (levels - 1) < 8
    assert size / 2 ** (levels - 1) >= 4  # pixels at the coarsest level


def test_auto_keeps_the_networks_of_digits_and_of_the_paper() -> None:
    assert [architectures.fitting(size) for size in (8, 16, 28, 32, 64, 128)] == [
        *("small", "small", "medium", "ddpm", "deep", "ddpm")
    ]


def test_padding_leaves_the_image_in_the_middle() -> None:
    diffusion = Diffusion.create("small", (1, 9, 9), ("a",))
    seen = []

    def denoiser(
        x: torch.Tensor, t: torch.Tensor, class_labels: torch.Tensor, return_dict: bool
    ) -> tuple[torch.Tensor]:
        seen.append(x.shape)
        return (x,)

    with mock.patch.object(diffusion.denoiser, "forward", denoiser):
        x = torch.randn(1, 1, 9, 9)
        out = diffusion(x, torch.tensor([0]), torch.tensor([0]))
    assert seen == [(1, 1, 10, 10)]
    assert torch.equal(out, x)


def test_a_size_that_halves_is_not_padded_and_an_architecture_is_known_by_its_shape() -> None:
    for name, size in (("small", 8), ("medium", 28), ("ddpm", 32), ("deep", 64)):
        diffusion = Diffusion.create(name, (1, size, size), ("a",))
        assert diffusion._padding == (0, 0)
        assert diffusion.architecture == name


def test_the_cost_is_that_of_the_published_network() -> None:
    cost = Diffusion.create("ddpm", (3, 32, 32), tuple("0123456789")).cost
    assert cost.parameters == 35_751_939
    assert cost.operations == pytest.approx(12.4e9, rel=0.02)  # twice the 6.2 G multiply-adds
    assert cost.training_hours(800, 128) == pytest.approx(13, rel=0.05)


def test_images_that_are_not_square_offer_a_size() -> None:
    with pytest.raises(InputError, match="images of 28x32 are not square; size = 28 crops them"):
        Diffusion.create("auto", (1, 28, 32), ("a",))


def test_an_unknown_architecture_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match="unknown architecture 'dpm' .*known: auto, small, medium, deep, ddpm"):
        Diffusion.create("dpm", (1, 8, 8), ("a",))
