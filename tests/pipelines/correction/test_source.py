"""The model to correct is made ready, or refused, before any work."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler

import safemax
from pipelines.correction.source import ready, seen_by_workers
from pipelines.engine.options import WorkerOptions
from safemax import methods
from safemax.diffusion.model import Diffusion
from safemax.diffusion.sampling import Sampler
from safemax.errors import InputError
from safemax.evaluation.protocol import Evaluation
from safemax.training.settings import Training
from tests.support import tiny_models

DATASET, FAST = tiny_models.dataset(), Evaluation()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFEMAX_CACHE", str(tmp_path / "cache"))


def unnamed(folder: Path) -> Path:
    path = folder / "model_index.json"
    index = json.loads(path.read_text())
    del index["class_names"]
    path.write_text(json.dumps(index))
    return folder


def test_workers_of_a_cluster_read_a_copy_in_the_cache_that_all_machines_share(tmp_path: Path) -> None:
    model, folder = tiny_models.diffusion(), tmp_path / "mlflow" / "base"
    model.save(folder)
    assert seen_by_workers(folder, WorkerOptions(workers=2)) == folder
    for _ in range(2):
        copy = seen_by_workers(folder, WorkerOptions(cluster="auto"))
        assert copy.is_relative_to(tmp_path / "cache")
        assert Diffusion.load(copy).digest() == model.digest()


def test_models_of_the_same_weights_with_another_schedule_or_other_names_are_copied_apart(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("model", "unnamed", "scheduled")]
    for folder in folders:
        tiny_models.diffusion().save(folder)
    unnamed(folders[1])
    schedule = folders[2] / "scheduler" / "scheduler_config.json"
    schedule.write_text(json.dumps(json.loads(schedule.read_text()) | {"beta_end": 0.03}))
    copies = {seen_by_workers(folder, WorkerOptions(cluster="auto")) for folder in folders}
    assert len(copies) == 3


def test_a_whole_model_is_taken_as_it_is(tmp_path: Path) -> None:
    tiny_models.diffusion().save(tmp_path / "model")
    source = ready(str(tmp_path / "model"), "auto", DATASET, FAST)
    assert source == (str(tmp_path / "model"), FAST)


def test_a_bare_unet_takes_a_schedule_and_the_names_of_the_data(tmp_path: Path) -> None:
    tiny_models.diffusion().save(tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / "scheduler")
    with pytest.raises(InputError, match="schedule = linear, scaled_linear, cosine, sigmoid says"):
        ready(str(tmp_path / "model" / "unet"), "auto", DATASET, FAST)
    source = ready(str(tmp_path / "model" / "unet"), "cosine", DATASET, FAST)
    completed = Diffusion.load(source.address)
    assert (completed.class_names, completed.has_null, completed.names_are_stated) == (("a", "b", "c"), True, True)
    cosine = DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    assert torch.equal(completed.alpha_bar, cosine.alphas_cumprod)
    assert ready(str(tmp_path / "model" / "unet"), "cosine", DATASET, FAST) == source  # the copy is found again
    assert not [each for each in Path(source.address).parent.iterdir() if each.name.startswith("tmp")]


def test_labels_without_null_label_and_names_are_told_by_the_data_and_sampled_unguided(tmp_path: Path) -> None:
    model = tiny_models.diffusion(null=False)
    model.save(tmp_path / "model")
    with pytest.warns(UserWarning, match="no null label, so protocol = fast is sampled unguided"):
        source = ready(str(unnamed(tmp_path / "model")), "auto", DATASET, FAST)
    completed = Diffusion.load(source.address)
    assert (completed.num_classes, completed.has_null) == (3, False)
    assert completed.digest() == model.digest()
    assert source.evaluation.main_sampler == Sampler("ddim", 20, 1.0, 0.0, True)
    assert source.evaluation.second_sampler.guidance_scale == 1
    assert source.evaluation.counts == FAST.counts
    assert source.evaluation.describe()["protocol"] == "custom"


def test_the_paper_protocol_is_unguided_too_and_an_unguided_one_is_left_alone() -> None:
    model = tiny_models.diffusion(null=False)
    with pytest.warns(UserWarning, match="protocol = paper"):
        fitted = Evaluation("paper").fitted(model)
    assert fitted.main_sampler == Sampler("ddpm", 1000, 1.0, 0.0, False)
    assert fitted.counts == (500, 5000)
    unguided = Evaluation("custom", guidance_scale=1.0)
    assert unguided.fitted(model) == unguided


@pytest.mark.parametrize(
    ("evaluation", "T"),
    [
        (FAST, 19),
        (FAST, 49),  # its second sampler takes 50
        (Evaluation("paper"), 999),
        (Evaluation("custom", sampler_steps=41), 40),
    ],
)
def test_a_model_with_fewer_steps_than_a_sampler_is_refused(tmp_path: Path, evaluation: Evaluation, T: int) -> None:  # noqa: N803
    tiny_models.diffusion(steps=T).save(tmp_path / "model")
    with pytest.raises(InputError, match=f"the model has T = {T} .*protocol = custom with sampler_steps"):
        ready(str(tmp_path / "model"), "auto", DATASET, evaluation)


def test_a_short_model_is_measured_by_a_custom_protocol() -> None:
    custom = Evaluation("custom", sampler_steps=40)
    assert custom.fitted(tiny_models.diffusion(steps=40)) == custom


@pytest.mark.parametrize("T", [20, 50])
def test_a_schedule_for_a_model_that_has_one_is_refused(tmp_path: Path, T: int) -> None:  # noqa: N803
    tiny_models.diffusion(steps=T).save(tmp_path / "model")
    with pytest.raises(InputError, match="schedule = linear is not allowed"):
        ready(str(tmp_path / "model"), "linear", DATASET, FAST)
    with pytest.raises(InputError, match="schedule = linear is not allowed: models:/x@base has"):
        ready("models:/x@base", "linear", DATASET, FAST)


def test_data_of_another_size_name_the_option(tmp_path: Path) -> None:
    Diffusion.create("small", (1, 12, 12), ("a", "b", "c")).save(tmp_path / "model")
    with pytest.raises(InputError, match="size = 12 resizes the images"):
        ready(str(tmp_path / "model"), "auto", DATASET, FAST)


@pytest.mark.parametrize(
    "name", [name for name, each in methods.available().items() if each.training.get("steps") != 0]
)
def test_a_method_that_learns_needs_steps(name: str) -> None:
    method = methods.create(name)
    with pytest.raises(InputError, match=f"steps = 0 is not allowed: {name} learns in steps"):
        methods.validate_steps(method, 0)
    methods.validate_steps(method, 1)


def test_an_edit_in_closed_form_needs_none() -> None:
    methods.validate_steps(methods.create("ssd"), replace(Training(), steps=0).steps)


def test_replay_images_that_the_model_cannot_draw_are_refused() -> None:
    method = methods.create("selective_amnesia", replay_steps=41)
    with pytest.raises(InputError, match="takes 41 denoising steps, but the model has T = 40"):
        method.validate(tiny_models.diffusion(steps=40))


def test_the_library_refuses_what_the_pipelines_refuse() -> None:
    with pytest.raises(InputError, match="the model has T = 40"):
        safemax.evaluate(tiny_models.diffusion(steps=40), DATASET, forget="a")
    with pytest.raises(InputError, match="steps = 0 is not allowed"):
        safemax.unlearn(tiny_models.diffusion(), "safemax", DATASET, forget="a", steps=0)
