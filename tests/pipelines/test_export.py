"""A version of every kind is registered, served and exported as the folder that diffusers opens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from diffusers import DDPMPipeline, DiTPipeline, StableDiffusionPipeline
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
    for part in ("library_name: diffusers", "Forgotten: **a**", "Method `safemax`", "| base | this model |", address):
        assert part in card
    with pytest.raises(InputError, match="already exists; name a new folder"):
        export([f"--model={address}", f"--to={tmp_path / 'out'}"])


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
