"""Every method on every kind of network and on every choice of weights: it learns, touches nothing else, and resumes."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipelines.correction.correction import Correction
from safemax.diffusion.model import Diffusion
from safemax.diffusion.weights import CHOICES, WITHOUT_ADAPTERS
from safemax.errors import InputError, Stopped
from safemax.evaluation.protocol import Evaluation
from safemax.judges.config import JudgeConfig
from safemax.methods import find
from safemax.training.hooks import Folders, Hooks
from tests.safemax.methods.test_contract import NAMES, refusal, small, training
from tests.support import tiny_kinds, tiny_models

FOREIGN = [kind for kind in tiny_kinds.KINDS if kind != "unet"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFEMAX_CACHE", str(tmp_path_factory.getbasetemp() / "kinds"))  # latents are made once for all


def trained(kind: str, name: str, *, folder: Path | None = None, **values: Any) -> tuple[Diffusion, dict[str, float]]:
    """Return a model of a kind that a method trained for two steps, and what the method logged."""
    diffusion, logged = tiny_kinds.KINDS[kind](), {}
    stop: Callable[[], bool] = values.pop("stop", lambda: False)
    hooks = Hooks(lambda m, step: logged.update(m), should_stop=stop, progress=False)
    # An untrained network's losses are beyond the cap at which gradient ascent stops by default.
    method = small(name, preset="paper" if name == "gradient_ascent" else "")
    tiny_models.train(diffusion, method, training(name, **values), hooks=hooks, folders=Folders(checkpoints=folder))
    return diffusion, logged


def weights(diffusion: Diffusion) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in diffusion.denoiser.state_dict().items()}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", FOREIGN)
def test_it_learns_on_every_kind_of_network(kind: str, name: str) -> None:
    diffusion, logged = trained(kind, name)
    assert logged
    assert all(math.isfinite(value) for value in logged.values())
    assert diffusion.digest() != tiny_kinds.KINDS[kind]().digest()
    assert all(p.requires_grad and p.grad is None for p in diffusion.parameters())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", [pytest.param(each, marks=pytest.mark.slow) for each in FOREIGN])
def test_a_run_that_was_stopped_goes_on_to_the_same_weights(kind: str, name: str, tmp_path: Path) -> None:
    asked = iter((False, True))
    with pytest.raises(Stopped):
        trained(kind, name, folder=tmp_path, stop=lambda: next(asked))
    assert trained(kind, name, folder=tmp_path)[0].digest() == trained(kind, name)[0].digest()


# Each method that has a mask, Fisher information or an edit of its own, with a subset and adapters on every kind, and with all
# choices of a text model; the rest is slow.
OWN_WEIGHTS = {"salun", "selective_amnesia", "sfron", "ssd"}


def _is_fast(kind: str, name: str, choice: str) -> bool:
    return name in OWN_WEIGHTS and (kind == "text" or choice in ("attention", "lora"))


EVERY_CHOICE = [
    pytest.param(kind, name, choice, marks=() if _is_fast(kind, name, choice) else pytest.mark.slow)
    for kind in tiny_kinds.KINDS for name in NAMES for choice in CHOICES if choice != "all"
]  # fmt: skip


@pytest.mark.parametrize(("kind", "name", "choice"), EVERY_CHOICE)
def test_only_the_chosen_weights_move_bit_for_bit(kind: str, name: str, choice: str) -> None:
    steps = 1 if name == "ssd" else 2
    said = refusal(lambda: trained(kind, name, trainable=choice, steps=steps))
    start = tiny_kinds.KINDS[kind]()
    if said:
        assert f"{choice} is not allowed" in said
        assert choice not in find(name).may_train or choice not in {*start.kind.layers, "lora"}
        return
    before, after = weights(start), weights(trained(kind, name, trainable=choice, steps=steps)[0])
    assert before.keys() == after.keys()
    moved = {key for key, value in after.items() if not torch.equal(value, before[key])}
    assert moved
    if choice == "lora":
        linear = {f"{at}.weight" for at, each in start.denoiser.named_modules() if isinstance(each, torch.nn.Linear)}
        assert moved <= linear
    else:
        assert all(any(part in f"denoiser.{key}" for part in start.kind.layers[choice]) for key in moved)


@pytest.mark.parametrize("kind", ["unet", "text"])
def test_adapters_resume_to_the_same_weights_and_leave_no_trace(kind: str, tmp_path: Path) -> None:
    asked = iter((False, True))
    with pytest.raises(Stopped):
        trained(kind, "salun", folder=tmp_path, trainable="lora", stop=lambda: next(asked))
    resumed, whole = (
        trained(kind, "salun", folder=tmp_path, trainable="lora")[0],
        trained(kind, "salun", trainable="lora")[0],
    )
    assert resumed.digest() == whole.digest()
    assert not any("lora" in name for name, _ in whole.denoiser.named_modules())
    assert [name for name, _ in whole.named_parameters()] == [
        name for name, _ in tiny_kinds.KINDS[kind]().named_parameters()
    ]


def test_a_mask_covers_the_chosen_weights_alone() -> None:
    diffusion, method = tiny_kinds.text(), small("salun")
    tiny_models.train(diffusion, method, training("salun", trainable="cross_attention"))
    chosen = [p for name, p in diffusion.named_parameters() if ".attn2." in name]
    assert (
        int(method.state()["size"]) == sum(p.numel() for p in chosen) < sum(p.numel() for p in diffusion.parameters())
    )


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("ssd", "edits the weights themselves, and adapters begin at 0; it may be all, attention"),
        ("scissorhands", "edits the weights themselves, and adapters begin at 0; it may be all, attention"),
        ("fisher_forgetting", "edits the weights themselves, and adapters begin at 0; it may be all, attention"),
        ("retrain", "begins with new values of all weights; it may be all$"),
    ],
)
def test_a_method_that_edits_or_replaces_the_weights_takes_no_adapters(name: str, reason: str) -> None:
    with pytest.raises(InputError, match=f"trainable = lora is not allowed with .*, which {reason}"):
        trained("unet", name, trainable="lora")
    method, settings = find(name)(), training(name, trainable="lora")
    with pytest.raises(InputError, match=reason):  # before a run begins, and judges are trained
        Correction(tiny_models.dataset(), (0,), "nowhere", "tiny", name, method, settings, Evaluation(), JudgeConfig())


def test_weights_that_a_network_lacks_are_refused_with_those_that_it_has() -> None:
    with pytest.raises(
        InputError, match="UNet2DModel has no such weights; it has all, attention, label_embedding, lora"
    ):
        trained("unet", "salun", trainable="cross_attention")
    assert set(WITHOUT_ADAPTERS) < set(CHOICES)
