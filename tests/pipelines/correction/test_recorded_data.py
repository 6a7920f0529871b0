"""A registered model says with which data it was made, and commands take them from there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from pipelines.attack import PARAMETERS as ATTACK
from pipelines.cli.options import SCHEDULES, DataOptions
from pipelines.cli.parameters import parameters
from pipelines.cli.parser import Arguments, parse
from pipelines.compare import PARAMETERS as COMPARE
from pipelines.correction import recorded_data
from pipelines.correction.base_model import NetworkOptions, train_base
from pipelines.correction.recorded_data import TAG, parse_with_recorded
from pipelines.evaluate import PARAMETERS as EVALUATE
from pipelines.registry import registration
from pipelines.unlearn import PARAMETERS as UNLEARN
from safemax.diffusion import schedules
from safemax.diffusion.model import Diffusion
from safemax.errors import InputError
from safemax.training.settings import Training
from tests.support import tiny_models

BIRDS = {"data": "fashion_mnist", "size": 24}


def parsed(groups: Mapping[str, type], *argv: str) -> Arguments:
    """Parse as the programs do."""
    return parse_with_recorded(lambda settings: parse("test", "", groups, argv, settings))


def version(store: MlflowClient, name: str, tag: str, alias: str = "base") -> None:
    store.create_registered_model(name)
    store.create_model_version(name, "nowhere", store.create_run("0").info.run_id, tags={TAG: tag})
    store.set_registered_model_alias(name, alias, "1")


@pytest.mark.parametrize("groups", [UNLEARN, COMPARE], ids=["unlearn", "compare"])
def test_the_base_of_a_name_gives_its_data(mlflow_store: MlflowClient, groups: Mapping[str, type]) -> None:
    version(mlflow_store, "birds", json.dumps(BIRDS))
    arguments = parsed(groups, "--name=birds", "--data=auto")
    assert (arguments["data"].data, arguments["data"].size) == ("fashion_mnist", 24)
    assert arguments.record()["size"] == {"value": 24, "source": "base"}


@pytest.mark.parametrize("groups", [UNLEARN, EVALUATE, ATTACK], ids=["unlearn", "evaluate", "attack"])
def test_a_version_gives_its_data(mlflow_store: MlflowClient, groups: Mapping[str, type]) -> None:
    version(mlflow_store, "birds", json.dumps(BIRDS), "candidate")
    data = parsed(groups, "--model=models:/birds@candidate")["data"]
    assert (data.data, data.size) == ("fashion_mnist", 24)


def test_what_the_user_gives_wins(mlflow_store: MlflowClient) -> None:
    version(mlflow_store, "birds", json.dumps(BIRDS))
    assert parsed(UNLEARN, "--name=birds", "--size=32")["data"] == DataOptions("fashion_mnist", 32)
    # other data must have the shape of the model; what else was recorded is about the data of then
    assert parsed(UNLEARN, "--name=birds", "--data=mnist")["data"] == DataOptions("mnist", 24)


def test_data_without_name_find_their_base(mlflow_store: MlflowClient, tmp_path: Path) -> None:
    (tmp_path / "cub").mkdir()
    tag = recorded_data.tag_of({"data": {"value": "cub"}, "size": {"value": 32}})
    assert json.loads(tag[TAG]) == {"data": str(tmp_path / "cub"), "size": 32}
    version(mlflow_store, "cub-ddpm", tag[TAG])
    assert parsed(UNLEARN, "--data=cub")["data"].size == 32
    assert parsed(UNLEARN, f"--data={tmp_path}/cub")["data"].size == 32


@pytest.mark.parametrize("tag", ["", "text", "[]", "null", '{"size": "32"}', '{"size": true}', '{"unknown": 1}'])
def test_a_tag_that_says_nothing_of_use_changes_nothing(mlflow_store: MlflowClient, tag: str) -> None:
    version(mlflow_store, "birds", tag)
    assert parsed(UNLEARN, "--name=birds")["data"] == DataOptions()


def test_without_a_base_the_defaults_hold(mlflow_store: MlflowClient) -> None:
    assert parsed(UNLEARN)["data"] == DataOptions()
    assert parsed(UNLEARN, "--model=./folder", "--data=mnist")["data"] == DataOptions("mnist")


def test_a_correction_inherits_what_its_parent_recorded(mlflow_store: MlflowClient) -> None:
    version(mlflow_store, "birds", json.dumps(BIRDS))
    assert json.loads(recorded_data.tag_of({}, "models:/birds/1")[TAG]) == BIRDS
    assert recorded_data.tag_of({}, "./folder") == {}


def test_every_data_option_is_recorded() -> None:
    record = {each.name: {"value": each.default} for each in parameters(DataOptions)}
    assert json.loads(recorded_data.tag_of(record)[TAG]).keys() == record.keys()


def test_a_base_records_its_shape_and_data_and_keeps_others_out(mlflow_store: MlflowClient) -> None:
    network = NetworkOptions(name="birds")
    training = Training(steps=1, batch_size=4, ema=0.0, forget_share=0.0, device="cpu")
    record: dict[str, dict[str, Any]] = {"data": {"value": "tiny"}, "size": {"value": 8}}
    train_base(tiny_models.dataset(), network, training, lambda: False, shown=1, record=record)
    tags = mlflow_store.get_model_version("birds", "1").tags
    assert (tags["image_size"], tags["architecture"]) == ("1x8x8", "small")
    assert json.loads(tags[TAG]) == {"data": "tiny", "size": 8}
    registration.refuse_other_shape("birds", tiny_models.diffusion())
    other = Diffusion.create("auto", (1, 12, 12), ("a", "b", "c"))
    with pytest.raises(InputError, match=r"its base models:/birds/1 has images of 1x8x8, .* 1x12x12; name=birds-12"):
        registration.refuse_other_shape("birds", other)
    registration.refuse_other_shape("birds-12", other)


def test_the_schedules_on_offer_are_those_that_can_be_read() -> None:
    assert tuple(schedules.NAMED) == SCHEDULES
