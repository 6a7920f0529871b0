"""The work that a plan counts is the work that is done: rows that pass through the network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipelines.planning import work
from safemax import attacks, methods
from safemax.diffusion.model import Diffusion
from safemax.evaluation.protocol import Evaluation
from safemax.evaluation.samples import draw, workload
from safemax.methods import create
from safemax.training.settings import Training
from safemax.training.trainer import Trainer
from tests.support import tiny_models

TRAINING = Training(steps=1, batch_size=8, device="cpu")
# Of the methods with a preparation, little of it.
SMALL: dict[str, dict[str, Any]] = {
    "selective_amnesia": {
        "replay_images": 6,
        "replay_steps": 2,
        "fisher_images": 6,
        "fisher_times": 2,
        "fisher_batch": 3,
    },
    "salun": {"mask_batches": 2},
    "sfron": {"fisher_batches": 2},
    "fisher_forgetting": {"fisher_images": 6, "fisher_times": 2},
    "ssd": {"importance_batches": 2},
    "safemax": {},
    "esd": {},
    "erasediff": {},
}


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFEMAX_CACHE", str(tmp_path))


def counted(diffusion: Diffusion) -> list[tuple[int, bool]]:
    """Return a list that gets the rows of each pass of a network, and whether it learns."""
    passes: list[tuple[int, bool]] = []

    def add(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        learns = torch.is_grad_enabled() and any(each.requires_grad for each in module.parameters())
        passes.append((len(args[0]), learns))

    diffusion.denoiser.register_forward_pre_hook(add)
    return passes


@pytest.mark.parametrize("name", SMALL)
def test_a_methods_counted_rows_are_those_of_a_real_network(name: str) -> None:
    dataset, diffusion = tiny_models.dataset(), tiny_models.diffusion()
    training = replace(TRAINING, steps=methods.available()[name].training.get("steps", 1) and 1)
    planned = work.work_of(create(name, **SMALL[name]), training, dataset, (0,))
    passes = counted(diffusion)
    trainer = Trainer(diffusion, create(name, **SMALL[name]), dataset.train, (0,), training, hooks=tiny_models.SILENT)
    trainer.prepare()
    for _ in range(training.steps):
        trainer.step()
    real = {learns: sum(rows for rows, each in passes if each == learns) for learns in (False, True)}
    assert real[False] == planned.preparation.drawn + planned.step.drawn
    assert real[True] == planned.preparation.trained + planned.step.trained
    assert real[True] > 0


@pytest.mark.parametrize("name", [name for name in methods.available() if name not in SMALL])
def test_every_other_method_can_be_counted(name: str) -> None:
    method = methods.available()[name]
    training = Training(steps=1, batch_size=8, device="cpu", forget_share=method.training.get("forget_share", 0.5))
    planned = work.work_of(create(name), training, tiny_models.dataset(), (0,))
    assert planned.preparation.trained + planned.step.trained > 0


@pytest.mark.parametrize("evaluation", [
    Evaluation("custom", 8, 5, 6, sampler_steps=2),
    Evaluation("custom", 9, 4, 5, sampler="dpmpp", sampler_steps=3, guidance_scale=1.0),
])  # fmt: skip
def test_a_measurements_planned_rows_are_those_that_it_draws(evaluation: Evaluation) -> None:
    diffusion = tiny_models.diffusion()
    passes = counted(diffusion)
    drawn = draw(diffusion, (0,), evaluation, progress=False)
    images, rows = workload(diffusion, (0,), evaluation)
    assert rows == sum(rows for rows, _ in passes)
    assert images == sum(len(labels) for _, labels in drawn.draws().values())


def test_an_attack_is_counted_once_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    attack, dataset = attacks.find("partial")(), tiny_models.dataset()
    rows = work.attack_rows(attack, 10, dataset, (0,))
    assert rows.drawn > 0
    monkeypatch.setattr(work, "_count_attack", None)
    assert work.attack_rows(attack, 10, dataset, (0,)) == rows
