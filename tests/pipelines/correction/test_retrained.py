"""The gold model of a base that was trained further, or of which nothing is recorded, is never trained too little in silence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipelines.correction.base_model import NetworkOptions, train_base
from pipelines.correction.retrained import GoldOptions, TrainedFurther, check_recipe, recipe_of
from pipelines.registry import model_versions
from safemax.diffusion.model import Diffusion
from safemax.errors import InputError, Note
from safemax.training.devices import uses_bf16
from safemax.training.settings import Training
from tests.support import tiny_models

NAME = "birds"
ROOT, FURTHER = f"models:/{NAME}/1", f"models:/{NAME}/2"


@pytest.fixture(scope="module")
def bases(mlflow_module_store: MlflowClient) -> None:
    """A base of two steps, and one that trains its weights three steps further."""
    architecture = "auto"
    for steps in (2, 3):
        network = NetworkOptions(architecture=architecture, name=NAME)
        training = Training(steps=steps, batch_size=4, ema=0.0, forget_share=0.0, device="cpu")
        address = train_base(tiny_models.dataset(), network, training, lambda: False, shown=1)
        architecture = str(model_versions.resolve(address))


@pytest.mark.usefixtures("bases")
def test_a_base_that_was_trained_further_needs_the_number_of_all_its_steps() -> None:
    assert recipe_of(ROOT, 0).training.steps == 2
    with pytest.raises(TrainedFurther, match=f"{FURTHER} was trained 3 steps further from .* gold_steps=N") as refused:
        recipe_of(FURTHER, 0)
    assert "\n" not in str(refused.value)
    assert recipe_of(FURTHER, 5).training.steps == 5


@pytest.mark.usefixtures("bases")
def test_a_gold_model_of_a_base_in_bf16_is_in_bf16_on_a_gpu_and_in_fp32_on_a_cpu() -> None:
    assert recipe_of(ROOT, 0).training.precision == "fp32"
    network = NetworkOptions(name="fast")
    training = Training(steps=1, batch_size=4, ema=0.0, forget_share=0.0, device="cpu", precision="bf16")
    address = train_base(tiny_models.dataset(), network, training, lambda: False, shown=1)
    recipe = recipe_of(address, 0)
    assert recipe.training.precision == "auto"
    assert not uses_bf16(replace(recipe.training, device="cpu"))
    plain = replace(recipe, training=replace(recipe.training, precision="fp32"))
    folders = {each.folder(tiny_models.diffusion(), tiny_models.dataset(), (0,)) for each in (recipe, plain)}
    assert len(folders) == 1, "the machine does not name another gold model"


@pytest.mark.usefixtures("bases")
def test_each_choice_of_a_gold_model_is_checked_before_the_work() -> None:
    dataset = tiny_models.dataset()
    with pytest.raises(TrainedFurther):
        GoldOptions().validate(FURTHER, dataset)
    with pytest.raises(InputError, match="absent is not a folder"):
        GoldOptions(gold="absent").validate(FURTHER, dataset)
    for options in (
        GoldOptions(gold="none"),
        GoldOptions(gold="kept"),
        GoldOptions(gold_steps=5),
        GoldOptions(gold=ROOT),
    ):
        options.validate(FURTHER, dataset)


@pytest.mark.usefixtures("bases")
def test_a_kept_gold_model_of_a_base_that_was_trained_further_is_one_of_that_many_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAFEMAX_CACHE", str(tmp_path))
    model, dataset = Diffusion.load(model_versions.resolve(FURTHER)), tiny_models.dataset()
    kept = GoldOptions(gold="kept")
    assert kept.find(model, FURTHER, dataset, (0,), lambda: False) is None
    made = GoldOptions(gold_steps=5).find(model, FURTHER, dataset, (0,), lambda: False)
    assert made is not None
    assert kept.find(model, FURTHER, dataset, (0,), lambda: False) is None
    again = GoldOptions(gold="kept", gold_steps=5).find(model, FURTHER, dataset, (0,), lambda: False)
    assert again is not None
    assert again.digest() == made.digest()


@pytest.mark.usefixtures("bases")
@pytest.mark.parametrize("base", [None, "folder"])
def test_where_nothing_is_recorded_the_number_of_steps_is_told(
    base: str | None, recwarn: pytest.WarningsRecorder
) -> None:
    check_recipe(ROOT, 0)
    check_recipe(base, 7)
    assert not [each for each in recwarn.list if each.category is Note]
    with pytest.warns(Note, match=f"nothing records how {base or 'the model'} was trained: .* 800 steps; gold_steps=N"):
        check_recipe(base, 0)
