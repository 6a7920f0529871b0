"""The served model draws what it may and refuses the rest in one line."""

from __future__ import annotations

import base64
import io
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import scoring_server
from PIL import Image
from starlette.testclient import TestClient

from pipelines import registry, serving
from safemax.data import to_uint8
from safemax.errors import InputError
from safemax.sampling import Sampler, sample
from tests import tiny

FAST = {"steps": 2}
ADDRESS = "models:/tiny-ddpm@candidate"


@pytest.fixture(scope="module")
def version(mlflow_module_store: MlflowClient) -> Path:
    """A registered version that has forgotten class a; its files in the store."""
    run_id = mlflow_module_store.create_run("0").info.run_id
    registry.register(
        tiny.diffusion(),
        "tiny-ddpm",
        run_id=run_id,
        evidence={"forgotten": ["a"]},
        tags={},
        description="",
        alias="candidate",
    )
    (model,) = mlflow_module_store.search_logged_models(["0"])
    return Path(model.artifact_location.removeprefix("file://"))


@pytest.fixture(scope="module")
def model(version: Path) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
        return mlflow.pyfunc.load_model(ADDRESS)


@pytest.fixture(scope="module")
def client(model: Any) -> TestClient:
    return TestClient(scoring_server.init(model), raise_server_exceptions=False)


def ask(*labels: Any) -> pd.DataFrame:
    return pd.DataFrame({"class_label": pd.Series(labels, dtype=object)})


def pixels(record: dict[str, Any]) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(record["image_png_b64"])), formats=["PNG"]))


def test_names_and_indices_give_png_images_in_order(model: Any) -> None:
    records = model.predict(ask("b", 2, "1", 1.0), params={**FAST, "num_images": 2, "seed": 5})
    assert [record["class_label"] for record in records] == ["b", "b", "c", "c", "b", "b", "b", "b"]
    assert {record["seed"] for record in records} == {5}
    assert {(pixels(record).shape, pixels(record).dtype.name) for record in records} == {((8, 8), "uint8")}


def test_the_image_is_what_the_library_draws(model: Any) -> None:
    (record,) = model.predict(ask("c"), params={**FAST, "seed": 9, "guidance_scale": 2.0})
    drawn = sample(tiny.diffusion(), torch.tensor([2]), Sampler(steps=2, guidance_scale=2.0), seed=9)
    np.testing.assert_array_equal(pixels(record), to_uint8(drawn)[0, 0].numpy())


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(model: Any) -> None:
    first, again, other = (model.predict(ask("b"), params={**FAST, "seed": seed}) for seed in (7, 7, 8))
    assert first == again
    assert first[0]["image_png_b64"] != other[0]["image_png_b64"]


def test_the_images_of_a_row_do_not_depend_on_the_other_rows(model: Any) -> None:
    assert model.predict(ask("c", "b"), params=FAST)[1] == model.predict(ask("b"), params=FAST)[0]


def test_what_is_left_out_is_what_the_library_takes(model: Any) -> None:
    assert model.predict(ask("b")) == model.predict(ask("b"), params=serving.defaults())
    assert serving.defaults()["steps"] == Sampler().steps


BAD: list[tuple[Any, dict[str, Any], str]] = [
    ("a", {}, "class_label = 'a' was forgotten by this model; allowed: b, c, or the index of one"),
    (0, {}, "class_label = '0' was forgotten by this model; allowed: b, c, or the index of one"),
    ("dog\nb", {}, r"class_label = 'dog\nb' is not known; allowed: b, c, or the index of one"),
    (3, {}, "class_label = '3' is not known; allowed: b, c, or the index of one"),
    (-1, {}, "class_label = '-1' is not known; allowed: b, c, or the index of one"),
    (True, {}, "class_label = 'True' is not known; allowed: b, c, or the index of one"),
    (None, {}, "class_label = 'None' is not known; allowed: b, c, or the index of one"),
    (["b"], {}, "class_label = \"['b']\" is not known; allowed: b, c, or the index of one"),
    ("b", {"num_images": 65}, "num_images = 65 is not allowed; num_images is a whole number from 1 to 64"),
    ("b", {"num_images": 0}, "num_images = 0 is not allowed; num_images is a whole number from 1 to 64"),
    ("b", {"num_images": None}, "num_images = null is not allowed; leave num_images out for its default"),
    ("b", {"seed": -1}, f"seed = -1 is not allowed; seed is a whole number from 0 to {2**62}"),
    ("b", {"seed": 2**70}, f"seed = {2**70} is not allowed; seed is a whole number from 0 to {2**62}"),
    ("b", {"steps": 101}, "steps = 101 is not allowed; steps is a whole number from 1 to 100"),
    (
        "b",
        {"guidance_scale": 1e9},
        "guidance_scale = 1000000000.0 is not allowed; guidance_scale is a number from -20 to 20",
    ),
    (
        "b",
        {"guidance_scale": float("nan")},
        "guidance_scale = nan is not allowed; guidance_scale is a number from -20 to 20",
    ),
    ("b", {"eta": 2.0}, "eta = 2.0 is not allowed; eta is a number from 0 to 1"),
    ("b", {"sampler": "euler"}, "unknown sampler 'euler'; known: ddim, ddpm, dpmpp"),
]


@pytest.mark.parametrize(("label", "params", "line"), BAD)
def test_a_refusal_in_process_is_one_line(model: Any, label: Any, params: dict[str, Any], line: str) -> None:
    with pytest.raises(MlflowException) as refusal:
        model.predict(ask(label), params=params)
    assert str(refusal.value) == line


@pytest.mark.parametrize(("label", "params", "line"), BAD)
def test_a_refusal_when_served_is_a_400_without_a_stack_trace(
    client: TestClient, label: Any, params: dict[str, Any], line: str
) -> None:
    status, answer = post(client, {"dataframe_records": [{"class_label": label}], "params": params})
    assert status == 400
    assert answer["message"].splitlines()[-1] == f"Error: {line}"
    assert "stack_trace" not in answer


def test_rows_times_images_is_what_is_limited(client: TestClient) -> None:
    rows = [{"class_label": "b"}] * 33
    status, answer = post(client, {"dataframe_records": rows, "params": {"num_images": 2}})
    assert status == 400
    assert answer["message"].endswith("num_images = 2 for 33 rows is not allowed; a request has at most 64 images")


@pytest.mark.parametrize("params", [{"steps": "many"}, {"seed": 1.5}, {"clip": "yes"}, {"eta": [0]}, ["seed", 1]])
def test_values_of_another_type_are_a_400_that_names_the_parameter(client: TestClient, params: Any) -> None:
    status, answer = post(client, {"dataframe_records": [{"class_label": "b"}], "params": params})
    assert status == 400
    assert isinstance(params, list) or next(iter(params)) in answer["message"].splitlines()[-1]
    assert "stack_trace" not in answer


def test_served_images_are_those_of_the_process(client: TestClient, model: Any) -> None:
    status, answer = post(client, {"dataframe_records": [{"class_label": "b"}], "params": {**FAST, "seed": 3}})
    assert status == 200
    assert answer["predictions"] == model.predict(ask("b"), params={**FAST, "seed": 3})


def test_no_hostile_request_is_a_server_error(client: TestClient) -> None:
    chance = random.Random(0)
    odd: list[Any] = [
        None,
        True,
        -1,
        1.5,
        2**80,
        1e308,
        "",
        "b",
        "a" * 10_000,
        "\u2028",
        [],
        {},
        [[1]],
        {"a": {"b": 1}},
        "'; --",
    ]
    names, fields = [*serving.defaults(), "bogus"], ["inputs", "instances", "dataframe_split", "x"]
    statuses = []
    for _ in range(400):
        rows = [{chance.choice(["class_label"] * 9 + ["x"]): chance.choice(["b"] * 9 + odd)} for _ in range(2)]
        params = chance.choice([{**FAST, chance.choice(names): chance.choice(odd)}, FAST, chance.choice(odd)])
        records = chance.choice([rows] * 9 + odd)
        body = {chance.choice(["dataframe_records"] * 9 + fields): records, "params": params}
        statuses.append(post(client, chance.choice([body] * 9 + odd))[0])
    assert set(statuses) == {200, 400}


def test_one_flipped_bit_is_refused_at_loading(version: Path) -> None:
    weights = version / "artifacts" / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        with pytest.raises(InputError, match=r"diffusion_pytorch_model.safetensors has changed"):
            mlflow.pyfunc.load_model(ADDRESS)
    finally:
        weights.write_bytes(content)


@pytest.mark.slow
def test_a_version_carries_the_code_that_it_needs(version: Path, tmp_path: Path) -> None:
    script = f"""
import mlflow, pandas
model = mlflow.pyfunc.load_model({ADDRESS!r})
import safemax
print(safemax.__file__)
print(model.predict(pandas.DataFrame({{"class_label": ["b"]}}), params={FAST!r})[0]["image_png_b64"])
"""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE")}
    command = [sys.executable, "-c", script]
    for _ in range(2):  # the first leaves __pycache__ in the store
        answer = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        place, image = answer.stdout.split()
        assert place == str(version / "code" / "safemax" / "__init__.py")
    drawn = mlflow.pyfunc.load_model(ADDRESS).predict(ask("b"), params=FAST)
    assert image == drawn[0]["image_png_b64"]


def post(client: TestClient, body: Any) -> tuple[int, dict[str, Any]]:
    answer = client.post("/invocations", content=json.dumps(body), headers={"content-type": "application/json"})
    return answer.status_code, answer.json()
