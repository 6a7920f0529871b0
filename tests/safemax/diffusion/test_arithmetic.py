"""A GPU's ways to compute samples, on a CPU as far as one can: in bf16, and traced by dynamo's eager backend."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from safemax.diffusion import arithmetic
from safemax.diffusion.model import Diffusion
from safemax.diffusion.sampling import Sampler, sample
from safemax.errors import InputError
from safemax.evaluation.protocol import Evaluation
from safemax.evaluation.samples import announce, cached_path, draw
from tests.support import tiny_kinds, tiny_models

LABELS = torch.tensor([0, 1, 2, 0, 1])
MAKERS = {"unet": tiny_models.diffusion, "dit": tiny_kinds.dit, "edm": tiny_kinds.edm, "text": tiny_kinds.text}


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arithmetic, "DEVICES", {"cpu"})
    monkeypatch.setattr(
        arithmetic, "BACKEND", "eager"
    )  # traces the network but makes no code for it: minutes are saved
    torch._dynamo.reset()
    counters.clear()


def images(model: Diffusion, computed: str, sampler: Sampler | None = None) -> torch.Tensor:
    sampler = (sampler or Sampler("ddim", 3, 1.5)).within(model)
    return sample(model, LABELS, sampler, seed=0, batch_size=2, computed=computed, decode=False)


@pytest.mark.parametrize("computed", arithmetic.CHOICES)
def test_on_a_cpu_all_are_exact(computed: str) -> None:
    model = tiny_models.diffusion()
    assert torch.equal(images(model, computed), images(model, arithmetic.EXACT))


def test_another_name_is_refused() -> None:
    with pytest.raises(
        InputError, match="unknown arithmetic 'fp16' .did you mean 'bf16'.*known: exact, bf16, compiled"
    ):
        images(tiny_models.diffusion(), "fp16")


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.usefixtures("as_on_a_gpu")
def test_bf16_stays_near_float32_and_a_compiled_network_draws_what_bf16_does(make: Callable[[], Diffusion]) -> None:
    model = make()
    network, before = model.denoiser, model.digest()
    exact, bf16, compiled = (images(model, computed) for computed in arithmetic.CHOICES)
    assert not torch.equal(bf16, exact), "nothing was computed in bf16"
    assert (bf16 - exact).abs().mean() <= 0.05 * exact.abs().mean()
    torch.testing.assert_close(
        compiled, bf16, atol=0.05, rtol=0.05
    )  # rows beside a row change how its sums are rounded
    assert model.denoiser is network
    assert model.digest() == before


@pytest.mark.usefixtures("as_on_a_gpu")
def test_a_network_is_compiled_once_for_all_batches_guided_or_not_and_for_all_models_of_its_kind() -> None:
    for model in (tiny_models.diffusion(), tiny_models.diffusion()):
        for sampler in (Sampler("ddim", 2, 1.5), Sampler("ddim", 2, 1.0)):
            images(model, arithmetic.COMPILED, sampler)
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize(("null_label", "rows"), [(True, 4), (False, 2)])
def test_a_compiled_network_gets_the_rows_of_its_largest_pass_and_no_more(null_label: bool, rows: int) -> None:
    model, got = tiny_models.diffusion(), set()
    if not null_label:
        model.name_classes(tuple(map(str, range(model.num_classes + 1))))  # the null label's row becomes a class
    model.denoiser.register_forward_pre_hook(lambda _, args: got.add(len(args[0])))
    images(model, arithmetic.COMPILED)
    assert got == {rows}


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("computed", arithmetic.CHOICES)
def test_what_a_draw_will_take_is_measured_in_its_arithmetic(computed: str) -> None:
    model, seen = tiny_models.diffusion(), set()
    model.denoiser.register_forward_pre_hook(lambda *_: seen.add(torch.is_autocast_enabled("cpu")))
    announce(model, (0,), Evaluation("custom", 8, 2, 2, user_samples=0, sampler_steps=2, arithmetic=computed), least=0)
    assert seen == {computed != arithmetic.EXACT}
    assert not counters["stats"], "compiled for an estimate"


@pytest.mark.usefixtures("as_on_a_gpu")
def test_the_network_is_the_models_own_again_after_an_error() -> None:
    model = tiny_models.diffusion()
    network = model.denoiser
    seen = []

    def fail(t: int, labels: torch.Tensor) -> torch.Tensor:
        seen.append(model.denoiser)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        sample(model, LABELS, Sampler("ddim", 2, 1.5), seed=0, computed=arithmetic.BF16, label_at=fail)
    assert seen[0] is not network
    assert model.denoiser is network


@pytest.mark.usefixtures("as_on_a_gpu")
def test_an_evaluation_draws_by_its_arithmetic_and_caches_it_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAFEMAX_CACHE", str(tmp_path))
    model = tiny_models.diffusion()
    exact, bf16 = (
        Evaluation("custom", 8, 2, 2, user_samples=2, sampler_steps=2, arithmetic=each) for each in ("exact", "bf16")
    )
    drawn = [draw(model, (0,), each, progress=False) for each in (exact, bf16)]
    for name in ("images", "second_images", "user_images"):
        first, second = (getattr(each, name).float() for each in drawn)
        assert not torch.equal(first, second)
    assert cached_path(model, (0,), exact) != cached_path(model, (0,), bf16)
    assert "arithmetic" not in exact.describe(), "what was cached and recorded before keeps its name"
