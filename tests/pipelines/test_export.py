"""A version of every kind is registered, served and exported as the folder that diffusers opens."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import mlflow
import pytest
import torch
from diffusers import DDPMPipeline, DiTPipeline, StableDiffusionPipeline
from huggingface_hub import ModelCard
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from benchmarks.tiny_pipelines import autoencoder, write_stable_diffusion
from pipelines.export import export
from pipelines.registry import model_versions, registration
from safemax.diffusion.condition import Prompt
from safemax.diffusion.model import Diffusion
from safemax.errors import InputError
from tests.support import tiny_kinds, tiny_models
from tests.support.registered_versions import evidence

PROMPTS = (
    Prompt("an a", "a"),
    Prompt("a b", "b"),
    Prompt("the letter a", "a", True),
    Prompt("the letter b", "b", True),
)


def registered(client: MlflowClient, diffusion: Diffusion) -> str:
    """Register a model that has forgotten a; return its address."""
    run_id = client.create_run("0").info.run_id
    client.set_terminated(run_id, "FINISHED")
    facts = evidence(weights=diffusion.digest())
    facts["parameters"]["method.name"] = "safemax"
    number = registration.register(
        diffusion, "tiny", run_id=run_id, evidence=facts, tags={}, description="", alias="champion"
    )
    return f"models:/tiny/{number}"


@pytest.fixture
def text(tmp_path: Path) -> Diffusion:
    torch.manual_seed(0)
    folder = write_stable_diffusion(tmp_path / "text", autoencoder(8, width=8), ("letter",), width=8)
    return Diffusion.load(folder, prompts=PROMPTS)


def test_a_text_model_is_served_by_names_and_prompts_and_refuses_what_was_forgotten_in_any_words(
    mlflow_store: MlflowClient, text: Diffusion
) -> None:
    address = registered(mlflow_store, text)
    served = mlflow.pyfunc.load_model(str(model_versions.verified_copy(address)))

    def ask(label: str) -> list[dict[str, Any]]:
        return served.predict({"class_label": [label]}, params={"steps": 1, "seed": 3})

    first, second = ask("b"), ask("The  letter B")
    assert first[0]["class_label"] == second[0]["class_label"] == "b"
    assert first[0]["image_png_b64"] != second[0]["image_png_b64"]
    for forgotten in ("a", "0", "an a", "The letter a"):
        with pytest.raises(MlflowException, match="was forgotten by this model; allowed: b"):
            ask(forgotten)
    with pytest.raises(MlflowException, match="'a cat' is not known"):
        ask("a cat")


def test_a_version_is_exported_as_the_folder_that_its_pipeline_opens(
    mlflow_store: MlflowClient, text: Diffusion, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address = registered(mlflow_store, text)
    export([f"--model={address}", f"--to={tmp_path / 'out'}"])
    assert "as StableDiffusionPipeline.from_pretrained opens it" in capsys.readouterr().out
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "out", local_files_only=True)
    weights = pipeline.unet.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in text.denoiser.state_dict().items())
    assert Diffusion.load(tmp_path / "out").identity() == text.identity()
    card = (tmp_path / "out" / "README.md").read_text()
    for part in ("Forgotten: **a**", "Method `safemax`", "| base | this model |", address, "pipeline('a b').images[0]"):
        assert part in card
    stated = ModelCard(card).data.to_dict()
    assert (stated["library_name"], stated["pipeline_tag"]) == ("diffusers", "text-to-image")
    with pytest.raises(InputError, match="already exists; name a new folder"):
        export([f"--model={address}", f"--to={tmp_path / 'out'}"])


class Hub(BaseHTTPRequestHandler):
    """What the hub answers to an upload of small files; it keeps what was asked, and the files by path."""

    asked: ClassVar[list[str]] = []
    files: ClassVar[dict[str, bytes]] = {}

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.asked.append(f"{self.path} {self.headers['authorization']}")
        place = f"http://{self.headers['host']}/me/pets"
        answer: dict[str, Any] = {"url": place, "commitUrl": f"{place}/commit/0", "commitOid": "0" * 40}
        if "/preupload/" in self.path:
            paths = [each["path"] for each in json.loads(body)["files"]]
            answer = {"files": [{"path": each, "uploadMode": "regular", "shouldIgnore": False} for each in paths]}
        if "/commit/" in self.path:
            values = [each["value"] for each in map(json.loads, body.splitlines()) if each["key"] == "file"]
            self.files.update((each["path"], base64.b64decode(each["content"])) for each in values)
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


def test_a_pushed_version_arrives_whole_with_its_card_in_a_private_repository(
    mlflow_store: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_TOKEN", "hf_of_this_test")
    address = registered(mlflow_store, tiny_kinds.latent_dit())
    try:
        export([f"--model={address}", f"--to={tmp_path / 'out'}", "--push=me/pets"])
    finally:
        server.shutdown()
        server.server_close()
    out = tmp_path / "out"
    assert Hub.files == {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert 'DiTPipeline.from_pretrained("me/pets")' in Hub.files["README.md"].decode()
    assert Hub.asked[0] == "/api/repos/create Bearer hf_of_this_test"
    assert "uploaded to" in capsys.readouterr().out
    with pytest.raises(InputError, match=rf"push = me/pets: .*; the folder {tmp_path / 'again'} is complete"):
        export([f"--model={address}", f"--to={tmp_path / 'again'}", "--push=me/pets"])


def test_versions_of_labels_are_exported_too(mlflow_store: MlflowClient, tmp_path: Path) -> None:
    export([f"--model={registered(mlflow_store, tiny_models.diffusion())}", f"--to={tmp_path / 'unet'}"])
    assert DDPMPipeline.from_pretrained(tmp_path / "unet", local_files_only=True)
    export([f"--model={registered(mlflow_store, tiny_kinds.latent_dit())}", f"--to={tmp_path / 'dit'}"])
    assert DiTPipeline.from_pretrained(tmp_path / "dit", local_files_only=True).vae


def test_what_cannot_be_exported_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a version"):
        export([f"--model={tmp_path}", f"--to={tmp_path / 'out'}"])
    with pytest.raises(InputError, match="push = nowhere is not allowed; it is owner/name"):
        export(["--model=models:/tiny/1", f"--to={tmp_path / 'out'}", "--push=nowhere"])
    with pytest.raises(InputError, match="to has no value"):
        export(["--model=models:/tiny/1"])
