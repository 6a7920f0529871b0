"""The served model draws what it may and refuses the rest in one line."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import os
import py_compile
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import requests
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import scoring_server
from mlflow.pyfunc.model import PythonModelContext
from PIL import Image
from starlette.testclient import TestClient

from pipelines.registry import model_versions, registration, served_model
from pipelines.serve import ServeOptions, command, serve
from safemax.data.batches import to_uint8
from safemax.diffusion import image_request
from safemax.diffusion.sampling import Sampler, sample
from safemax.errors import InputError
from safemax.storage import manifest
from tests.support import tiny_models

FAST = {"steps": 2}
ADDRESS = "models:/tiny-ddpm@candidate"


@pytest.fixture(scope="module")
def version(mlflow_module_store: MlflowClient) -> Path:
    """A registered version that has forgotten class a; its files in the store."""
    run_id = mlflow_module_store.create_run("0").info.run_id
    registration.register(
        tiny_models.diffusion(),
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
    drawn = sample(tiny_models.diffusion(), torch.tensor([2]), Sampler(steps=2, guidance_scale=2.0), seed=9)
    np.testing.assert_array_equal(pixels(record), to_uint8(drawn)[0, 0].numpy())


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(model: Any) -> None:
    first, again, other = (model.predict(ask("b"), params={**FAST, "seed": seed}) for seed in (7, 7, 8))
    assert first == again
    assert first[0]["image_png_b64"] != other[0]["image_png_b64"]


def test_the_images_of_a_row_do_not_depend_on_the_other_rows(model: Any) -> None:
    assert model.predict(ask("c", "b"), params=FAST)[1] == model.predict(ask("b"), params=FAST)[0]


def test_what_is_left_out_is_what_the_library_takes(model: Any) -> None:
    assert model.predict(ask("b")) == model.predict(ask("b"), params=image_request.defaults())
    assert image_request.defaults()["steps"] == Sampler().steps


BAD: list[tuple[Any, dict[str, Any], str]] = [
    ("a", {}, "class_label = 'a' was forgotten by this model; allowed: b, c, or the index of one"),
    (0, {}, "class_label = '0' was forgotten by this model; allowed: b, c, or the index of one"),
    ("dog\nb", {}, r"class_label = 'dog\nb' is not known; allowed: b, c, or the index of one"),
    (3, {}, "class_label = '3' is not known; allowed: b, c, or the index of one"),
    (-1, {}, "class_label = '-1' is not known; allowed: b, c, or the index of one"),
    (True, {}, "class_label = 'True' is not known; allowed: b, c, or the index of one"),
    (None, {}, "class_label = 'None' is not known; allowed: b, c, or the index of one"),
    ([["b"]], {}, "class_label = \"['b']\" is not known; allowed: b, c, or the index of one"),
    (["b", "a"], {}, "class_label = 'a' was forgotten by this model; allowed: b, c, or the index of one"),
    (
        "b",
        {"num_images": 64, "steps": 21},
        "64 images of ddim-21-g1.5-clip take 2688 denoiser steps (images x steps, twice if guided); "
        "a request has at most 2560",
    ),
    (
        ["b"] * 30,
        {"steps": 100, "guidance_scale": 1.0},
        "30 images of ddim-100-g1-clip take 3000 denoiser steps (images x steps, twice if guided); "
        "a request has at most 2560",
    ),
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
    *(
        (
            "b",
            {"guidance_scale": scale},
            f"guidance_scale = {scale:g} is not allowed; a model that forgot a class takes at least 1: "
            "below 1 its null label contributes, which may still draw that class",
        )
        for scale in (-2.0, 0.0, 0.5)
    ),
    ("b", {"eta": 2.0}, "eta = 2.0 is not allowed; eta is a number from 0 to 1"),
    ("b", {"sampler": "euler"}, "unknown sampler 'euler'; known: ddim, ddpm, dpmpp"),
]


@pytest.mark.parametrize(("forgotten", "limits"), [([], {}), (["a"], {"min_guidance_scale": -20.0})])
def test_a_base_and_a_server_that_says_so_draw_at_every_guidance_scale(
    forgotten: list[str], limits: dict[str, float]
) -> None:
    unbound: Any = served_model.ImageModel()
    unbound.diffusion, unbound.forgotten = tiny_models.diffusion(), forgotten
    unbound.limits = image_request.LIMITS | limits
    context = PythonModelContext({}, {})
    assert len(unbound.predict(context, ask("b"), params={**FAST, "guidance_scale": -2.0})) == 1


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


@pytest.mark.parametrize("form", ["inputs", "instances", "dataframe_split", "dataframe_records"])
def test_every_form_of_a_request_is_read_alike_column_wise_too(client: TestClient, model: Any, form: str) -> None:
    rows: dict[str, Any] = {
        "inputs": {"class_label": ["b", "2"]},
        "instances": [{"class_label": "b"}, {"class_label": "2"}],
        "dataframe_split": {"columns": ["class_label"], "data": [["b"], ["2"]]},
        "dataframe_records": [{"class_label": "b"}, {"class_label": "2"}],
    }
    status, answer = post(client, {form: rows[form], "params": FAST})
    assert (status, answer.get("message")) == (200, None)
    assert answer["predictions"] == model.predict(ask("b", "2"), params=FAST)


@pytest.mark.parametrize("labels", [["b", "2"], ("b", "2"), np.array(["b", "2"], dtype=object)])
def test_columns_are_read_in_process_too(model: Any, labels: Any) -> None:
    assert model.predict({"class_label": labels}, params=FAST) == model.predict(ask("b", "2"), params=FAST)


def test_what_a_request_may_cost_is_enough_for_all_images_by_default() -> None:
    guided = 2
    assert image_request.LIMITS["max_images"] * Sampler().steps * guided == image_request.LIMITS["max_denoiser_steps"]


def test_a_body_that_is_too_long_is_cut_whatever_its_headers_say(client: TestClient) -> None:
    sent = 0

    def chunks() -> Iterator[bytes]:  # no content-length: the body comes in chunks
        nonlocal sent
        for _ in range(10_000):
            sent += 50_000
            yield b" " * 50_000

    answer = client.post("/invocations", content=chunks(), headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["message"]) == (400, "the request has more than 100000 bytes")


@pytest.mark.parametrize("length", ["100001", "9" * 30, "-1", "1e3"])
def test_a_length_that_is_not_allowed_is_refused_before_the_body_is_read(length: str) -> None:
    with pytest.raises(InputError, match=f"the request has {length[:20]} bytes; 100000 are allowed"):
        served_model._admit({"content-type": "application/json", "content-length": length}, 0)


def test_more_requests_than_the_queue_takes_are_answered_with_429_at_once(model: Any) -> None:
    app = scoring_server.init(model)
    body = json.dumps({"dataframe_records": [{"class_label": "b"}], "params": {"steps": 100}}).encode()

    async def answered() -> int:
        received = asyncio.Queue[dict[str, Any]]()
        received.put_nowait({"type": "http.request", "body": body, "more_body": False})
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"content-type", b"application/json")]
        where = {"method": "POST", "path": "/invocations", "query_string": b"", "root_path": ""}
        await app({"type": "http", "http_version": "1.1", "headers": headers, **where}, received.get, send)
        return int(sent[0]["status"])

    async def flood() -> list[int]:
        return await asyncio.gather(*(answered() for _ in range(20)))

    statuses = asyncio.run(flood())
    assert sorted(set(statuses)) == [200, 429]
    assert statuses.count(200) == served_model.MAX_REQUESTS
    assert asyncio.run(flood()).count(200) == served_model.MAX_REQUESTS  # the places are free again


def test_work_ends_when_the_server_has_given_up_on_it(model: Any) -> None:
    token = served_model._DEADLINE.set(time.monotonic() - 1)
    loaded = model.unwrap_python_model()
    deadline = sys.modules[type(loaded).__module__]._DEADLINE
    inner = deadline.set(time.monotonic() - 1)
    try:
        with pytest.raises(MlflowException, match="took longer than the server's time-out and was stopped"):
            model.predict(ask("b"), params=FAST)
    finally:
        deadline.reset(inner)
        served_model._DEADLINE.reset(token)


def test_a_refusal_is_one_line_in_the_log(
    client: TestClient, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    capfd.readouterr()
    caplog.clear()
    bodies: list[tuple[bytes, str]] = [
        (json.dumps({"dataframe_records": [{"class_label": "a"}]}).encode(), "class_label = 'a' was forgotten"),
        (b"[" * 50_000, "RecursionError"),
        (b" " * 100_001, "the request has 100001 bytes"),
        (b'{"dataframe_records": [{"class_label": "b"}], "params": {"steps": "many"}}', "steps"),
        (b'{"dataframe_records": 3}', ""),
        (b"not json", ""),
    ]
    for body, words in bodies:
        assert (
            client.post("/invocations", content=body, headers={"content-type": "application/json"}).status_code == 400
        )
        lines = [each.getMessage() for each in caplog.records if each.levelname != "INFO"]
        assert len(lines) == 1
        assert lines[0].startswith("refused with 400: ")
        assert words in lines[0]
        assert "\n" not in lines[0]
        assert "Traceback" not in "".join(capfd.readouterr())
        caplog.clear()


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
    names, fields = [*image_request.defaults(), "bogus"], ["inputs", "instances", "dataframe_split", "x"]
    statuses = []
    for _ in range(400):
        rows = [{chance.choice(["class_label"] * 9 + ["x"]): chance.choice(["b"] * 9 + odd)} for _ in range(2)]
        params = chance.choice([{**FAST, chance.choice(names): chance.choice(odd)}, FAST, chance.choice(odd)])
        records = chance.choice([rows] * 9 + odd)
        body = {chance.choice(["dataframe_records"] * 9 + fields): records, "params": params}
        statuses.append(post(client, chance.choice([body] * 9 + odd))[0])
    assert set(statuses) == {200, 400}


UNREADABLE: list[tuple[bytes, str | None, str]] = [
    (b"{}", None, "content-type = 'None' is not allowed; send application/json"),
    (b"class_label\nb\n", "text/csv", "content-type = 'text/csv' is not allowed; send application/json"),
    (b"PAR1", "application/vnd.apache.parquet", "content-type = 'application/vnd.apache.parquet' is not allowed"),
    (b"[" * 50_000, "application/json", "not JSON that this server can read: RecursionError"),
    (b'{"inputs":' * 9_000, "application/json", "not JSON that this server can read: RecursionError"),
    (b'{"inputs":' + b"9" * 5000 + b"}", "application/json", "not JSON that this server can read: ValueError"),
    (b" " * 100_001, "application/json", "the request has 100001 bytes; 100000 are allowed"),
]


@pytest.mark.parametrize(("body", "kind", "words"), UNREADABLE)
def test_what_mlflow_itself_would_fail_on_is_a_400_in_one_line(
    client: TestClient, body: bytes, kind: str | None, words: str
) -> None:
    answer = client.post("/invocations", content=body, headers={"content-type": kind} if kind else {})
    assert answer.status_code == 400
    assert words in answer.json()["message"]
    assert "\n" not in answer.json()["message"]
    assert "stack_trace" not in answer.json()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
ROWS = st.lists(
    st.dictionaries(
        st.just("class_label") | st.text(max_size=9), st.sampled_from(["b", "c", 1, 2.0]) | JSON, max_size=2
    ),
    max_size=4,
)
PARAMS = st.dictionaries(
    st.sampled_from(sorted(image_request.defaults())) | st.text(max_size=9),
    JSON | st.sampled_from([2**63, -(2**70), 1e308, -0.0, 10**4000, "ddim", 1, 64, 65]),
    max_size=3,
).map(lambda given: {"steps": 1, **given} if given.get("steps") not in range(3, 101) else FAST)
FORMATS = st.sampled_from(["dataframe_records"] * 6 + ["dataframe_split", "inputs", "instances", "messages", "input"])
NEARLY = st.builds(lambda form, rows, params: {form: rows, "params": params}, FORMATS, ROWS | JSON, PARAMS | JSON)
GOOD = json.dumps({"dataframe_records": [{"class_label": "b"}], "params": FAST}).encode()


def _cut_and_filled(at: int, length: int, filling: bytes) -> bytes:
    return GOOD[:at] + filling + GOOD[at + length :]


BODIES = st.one_of(
    NEARLY.map(lambda body: json.dumps(body).encode()),
    JSON.map(lambda body: json.dumps(body).encode()),
    st.builds(_cut_and_filled, st.integers(0, len(GOOD)), st.integers(0, 9), st.binary(max_size=9)),
    st.builds(
        lambda depth, a, b: a * depth + b * depth,
        st.integers(1, 2000),
        *[st.sampled_from([b"[", b"]", b'{"a":', b"}"])] * 2,
    ),
    st.integers(1, 6000).map(lambda digits: GOOD.replace(b'"b"', b"-" + b"7" * digits)),
    st.binary(max_size=60),
)
TYPES = st.sampled_from(
    ["application/json"] * 12 + ["application/json; charset=utf-8", "application/json; charset=x; y"]
) | st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30)


@pytest.mark.parametrize("number", [200, pytest.param(2000, marks=pytest.mark.slow)])
def test_hostile_requests_are_all_answered_and_none_by_a_server_error(client: TestClient, number: int) -> None:
    @settings(max_examples=number, deadline=10_000, suppress_health_check=list(HealthCheck))
    @given(body=BODIES, kind=TYPES)
    def ask_for(body: bytes, kind: str) -> None:
        answer = client.post("/invocations", content=body, headers={"content-type": kind})
        assert answer.status_code in (200, 400, 415)
        assert answer.status_code != 415 or "json" in kind  # MLflow refuses another charset so

    ask_for()


def test_requests_at_once_get_the_bytes_that_they_get_alone(client: TestClient) -> None:
    def ask_for(seed: int) -> Any:
        body = {"dataframe_records": [{"class_label": "b"}], "params": {"steps": 5, "seed": seed, "num_images": 3}}
        return post(client, body)

    alone = [ask_for(seed) for seed in range(6)]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(ask_for, range(6))) == alone


def test_one_flipped_bit_is_refused_at_loading(version: Path) -> None:
    weights = version / "artifacts" / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        with pytest.raises(InputError, match=r"diffusion_pytorch_model.safetensors has changed"):
            mlflow.pyfunc.load_model(ADDRESS)
    finally:
        weights.write_bytes(content)


@pytest.fixture
def intact(version: Path) -> Iterator[Path]:
    """The version's folder; what a test does to it is undone."""
    kept = version.with_name("kept")
    shutil.copytree(version, kept)
    yield version
    shutil.rmtree(version)
    kept.rename(version)


def forgetful(version: Path) -> None:
    """Make a version say that nothing was forgotten, with a manifest that agrees."""
    evidence = version / "artifacts" / "evidence.json"
    evidence.write_text(json.dumps({**json.loads(evidence.read_text()), "forgotten": []}))
    for name in served_model.LEFT_BY_LOADERS:
        for path in version.rglob(name):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    manifest.write(version)


PLANTED = [
    "code/safemax/__pycache__/errors.cpython-311.pyc",
    "code/safemax/errors.pyc",
    "code/torch.so",
    "__pycache__/x.pyc",
]


def test_emptied_forgotten_with_a_rewritten_manifest_is_refused_by_the_loader_and_by_serve(intact: Path) -> None:
    forgetful(intact)
    with pytest.raises(InputError, match="its manifest does not match its tag digest.manifest"):
        mlflow.pyfunc.load_model(ADDRESS)
    with pytest.raises(InputError, match="its manifest does not match its tag digest.manifest"):
        serve([f"--model={ADDRESS}"])


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_compiled_file_is_refused_by_the_loader_and_by_serve(intact: Path, name: str) -> None:
    (intact / name).parent.mkdir(exist_ok=True)
    (intact / name).write_bytes(b"planted")
    for load in (lambda: mlflow.pyfunc.load_model(ADDRESS), lambda: serve([f"--model={ADDRESS}"])):
        with pytest.raises(InputError, match=f"holds compiled files that no manifest lists.*: {name}"):
            load()


@pytest.mark.parametrize("name", ["code/safemax/extra.py", "sitecustomize.py", "code/.pth"])
def test_a_file_that_the_manifest_does_not_list_is_not_served(intact: Path, name: str) -> None:
    (intact / name).write_text("raise SystemExit")
    with pytest.raises(InputError, match=f"{name} is"):
        serve([f"--model={ADDRESS}"])


@pytest.mark.parametrize("model", ["base", "./folder", "owner/name", "models:/tiny-ddpm@nobody", "models:/nobody/1"])
def test_only_a_version_in_the_registry_is_served(version: Path, model: str) -> None:
    with pytest.raises(ValueError, match="is not allowed; only a version in the registry|unknown"):
        serve([f"--model={model}"])


def test_what_is_served_is_a_copy_that_python_leaves_as_it_is(version: Path) -> None:
    folder = model_versions.verified_copy(ADDRESS, refuse_compiled=True)
    words, environment = command(folder, ServeOptions(ADDRESS, 5011, "127.0.0.1"))
    assert folder != version
    assert words[1:3] == ["-B", "-m"]
    assert words[3:] == ["uvicorn", "--port", "5011", "mlflow.pyfunc.scoring_server.app:app", "--host", "127.0.0.1"]
    assert environment["PYTHONDONTWRITEBYTECODE"] == "1"
    assert str(folder) in environment["__pyfunc_model_path__"]


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
    words = [sys.executable, "-c", script]
    for _ in range(2):
        answer = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        place, image = answer.stdout.split()
        assert place == str(version / "code" / "safemax" / "__init__.py")
    drawn = mlflow.pyfunc.load_model(ADDRESS).predict(ask("b"), params=FAST)
    assert image == drawn[0]["image_png_b64"]
    assert served_model.compiled(version) == []
    planted = version / "code" / "safemax" / "__pycache__" / f"errors.{sys.implementation.cache_tag}.pyc"
    planted.parent.mkdir()
    evil = tmp_path / "evil.py"
    evil.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    py_compile.compile(str(evil), str(planted), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    try:
        refused = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    finally:
        shutil.rmtree(planted.parent)
    assert refused.returncode == 1
    assert "holds compiled files that no manifest lists: code/safemax/__pycache__/errors" in refused.stderr
    assert not (tmp_path / "ran").exists()


CLIENT = Path(__file__).parents[3] / "examples" / "client.ipynb"


def code_of(notebook: Path) -> list[str]:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def test_the_notebook_is_one_holds_no_output_and_names_what_the_server_takes() -> None:
    content = json.loads(CLIENT.read_text(encoding="utf-8"))
    assert (content["nbformat"], len({cell["id"] for cell in content["cells"]})) == (4, len(content["cells"]))
    cells = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    for text in code_of(CLIENT):
        compile(text, "client.ipynb", "exec")
    assert all(name in code_of(CLIENT)[0] for name in image_request.defaults())


@pytest.fixture(params=["mlflow models serve", "serve"])
def server(version: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """Our own server, as the README has it, and MLflow's; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    binaries = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    words = [sys.executable, "-m", "mlflow", "models", "serve", "-m", ADDRESS, "--env-manager", "local", "-p", port]
    if request.param == "serve":
        words = [sys.executable, "-m", "pipelines.serve", f"--model={ADDRESS}", f"--port={port}"]
        binaries = os.environ["PATH"]
    with subprocess.Popen(
        words,
        env={**os.environ, "PATH": binaries, "PYTHONPATH": str(Path(__file__).parents[3])},
        start_new_session=True,
    ) as process:
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow
def test_a_server_draws_refuses_survives_and_serves_the_notebook(
    server: str, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask_for(body: bytes, kind: str | None = "application/json") -> tuple[int, dict[str, Any]]:
        answer = requests.post(
            f"{server}/invocations", data=body, timeout=60, headers={"content-type": kind} if kind else {}
        )
        return answer.status_code, answer.json()

    for _ in range(240):
        with contextlib.suppress(requests.ConnectionError):
            requests.get(f"{server}/ping", timeout=60)
            break
        time.sleep(0.5)
    refused, answer = ask_for(json.dumps({"dataframe_records": [{"class_label": "a"}]}).encode())
    assert (refused, answer["message"].splitlines()[-1]) == (400, f"Error: {BAD[0][2]}")
    assert [ask_for(body, kind)[0] for body, kind, _ in UNREADABLE] == [400] * len(UNREADABLE)
    answers = [ask_for(GOOD) for _ in range(2)]
    assert answers == [(200, {"predictions": model.predict(ask("b"), params=FAST)})] * 2
    monkeypatch.setenv("SAFEMAX_SERVER", server)
    notebook: dict[str, Any] = {}
    exec(code_of(CLIENT)[0], notebook)
    images = notebook["draw"]("b", 2, num_images=2, **FAST)
    assert [image.size for image in images] == [(8, 8)] * 4
    assert notebook["strip"](images).size == (256, 64)


def post(client: TestClient, body: Any) -> tuple[int, dict[str, Any]]:
    answer = client.post("/invocations", content=json.dumps(body), headers={"content-type": "application/json"})
    return answer.status_code, answer.json()
