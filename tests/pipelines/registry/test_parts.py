"""Versions of large models hold what changed; what they share is fetched, verified, spared by reap, and missed by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlflow
import pytest
import torch
from diffusers import StableDiffusionPipeline
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from benchmarks.tiny_pipelines import autoencoder, write_stable_diffusion
from pipelines.export import export
from pipelines.registry import model_versions, orphans, parts, registration
from safemax.diffusion import changes, weights
from safemax.diffusion.condition import Prompt
from safemax.diffusion.model import Diffusion
from safemax.errors import InputError
from tests.support import tiny_kinds
from tests.support.registered_versions import evidence

NAME = "pets"
PROMPTS = (Prompt("an a", "a"), Prompt("a b", "b"), Prompt("some a", "a", held_out=True))
SHARED = ["text_encoder", "tokenizer", "vae"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A Stable Diffusion of random weights, as diffusers saves it."""
    torch.manual_seed(0)
    return write_stable_diffusion(tmp_path / "text", autoencoder(8, width=8), ("letter",), width=16)


def changed(source: Path | str, choice: str, *, seed: int = 1) -> Diffusion:
    """Return the model of a folder or version, some of whose weights were moved as a training would."""
    diffusion = Diffusion.load(source, prompts=() if (Path(source) / "classes.json").exists() else PROMPTS)
    torch.manual_seed(seed)
    weights.limit(diffusion, choice, rank=2)
    with torch.no_grad():
        for p in diffusion.parameters():
            p.add_(0.1 * torch.randn_like(p))
    weights.release(diffusion)
    return diffusion.eval()


def register(client: MlflowClient, diffusion: Diffusion, name: str = NAME) -> str:
    """Register a model, by a run that has ended; return its address."""
    run_id = client.create_run("0").info.run_id
    client.set_terminated(run_id, "FINISHED")
    facts = evidence(weights=diffusion.digest())
    number = registration.register(
        diffusion, name, run_id=run_id, evidence=facts, tags={}, description="", alias="champion"
    )
    return f"models:/{name}/{number}"


def held(address: str) -> tuple[list[str], dict[str, object], int]:
    """Return the folders that a version holds, what it states of the others, and the bytes of its model."""
    pipeline = model_versions.verified_copy(address) / "artifacts" / "pipeline"
    stated = pipeline / changes.STATED
    size = sum(path.stat().st_size for path in pipeline.rglob("*") if path.is_file())
    folders = sorted(path.name for path in pipeline.iterdir() if path.is_dir())
    return folders, json.loads(stated.read_text()) if stated.exists() else {}, size


def same(address: str, diffusion: Diffusion) -> bool:
    return Diffusion.load(model_versions.resolve(address)).identity() == diffusion.identity()


def test_codec_tokenizer_and_text_encoder_are_held_by_the_first_version_alone(
    mlflow_store: MlflowClient, folder: Path
) -> None:
    first, second = (changed(folder, "all", seed=seed) for seed in (1, 2))
    one, two = register(mlflow_store, first), register(mlflow_store, second)
    assert held(one)[0] == ["scheduler", *SHARED[:2], "unet", "vae"]
    assert held(one)[1] == {}
    folders, stated, _ = held(two)
    assert folders == ["scheduler", "unet"]
    assert sorted(stated["elsewhere"]) == SHARED  # type: ignore[call-overload]
    assert same(one, first)
    assert same(two, second)
    other = register(mlflow_store, second, "other")  # of another name, on its own
    assert held(other)[1] == {}


def test_adapters_are_kept_instead_of_the_denoiser_one_correction_after_the_other(
    mlflow_store: MlflowClient, folder: Path
) -> None:
    first = changed(folder, "lora")
    one = register(mlflow_store, first)
    assert {"base_denoiser", "changes"} <= set(held(one)[0])
    second = changed(model_versions.resolve(one), "lora", seed=2)
    two = register(mlflow_store, second)
    third = changed(model_versions.resolve(two), "cross_attention", seed=3)
    three = register(mlflow_store, third)
    for address, diffusion, count in ((one, first, 1), (two, second, 2), (three, third, 3)):
        assert same(address, diffusion)
        copy = model_versions.verified_copy(address) / "artifacts" / "pipeline"
        assert len(list((copy / "changes").iterdir())) == count
        assert not (copy / "unet").exists()
    folders, stated, size = held(two)
    assert folders == ["changes", "scheduler"]
    assert sorted(stated["elsewhere"]) == ["base_denoiser", *SHARED]  # type: ignore[call-overload]
    assert size < 0.2 * held(one)[2]


def test_a_version_corrected_with_adapters_shares_the_denoiser_of_the_base_that_the_registry_has(
    mlflow_store: MlflowClient, folder: Path
) -> None:
    base = changed(folder, "all")
    address = register(mlflow_store, base)
    diffusion = changed(model_versions.resolve(address), "lora", seed=2)
    two = register(mlflow_store, diffusion)
    folders, stated, _ = held(two)
    assert folders == ["changes", "scheduler"]
    place = stated["elsewhere"]["base_denoiser"]  # type: ignore[index]
    assert place["path"] == "artifacts/pipeline/unet"
    assert same(two, diffusion)


def test_an_export_is_whole_and_opens_in_diffusers(mlflow_store: MlflowClient, folder: Path, tmp_path: Path) -> None:
    register(mlflow_store, changed(folder, "lora"))
    diffusion = changed(folder, "lora", seed=2)
    address = register(mlflow_store, diffusion)
    export([f"--model={address}", f"--to={tmp_path / 'out'}"])
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "out", local_files_only=True)
    opened = pipeline.unet.state_dict()
    assert all(torch.equal(value, opened[key]) for key, value in diffusion.denoiser.state_dict().items())
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"unet", "README.md", *SHARED}
    assert not {"changes", "changed.json", "base_denoiser"} & {path.name for path in (tmp_path / "out").iterdir()}


def test_it_is_served_by_its_address_and_in_a_private_copy(mlflow_store: MlflowClient, folder: Path) -> None:
    register(mlflow_store, changed(folder, "lora"))
    diffusion = changed(folder, "lora", seed=2)
    address = register(mlflow_store, diffusion)
    for place in (address, str(model_versions.verified_copy(address))):
        served = mlflow.pyfunc.load_model(place)
        assert served.predict({"class_label": ["b"]}, params={"steps": 1})[0]["class_label"] == "b"
        assert served.unwrap_python_model().diffusion.identity() == diffusion.identity()


def test_reap_spares_what_a_version_needs_after_the_version_that_held_it_is_deleted(
    mlflow_store: MlflowClient, folder: Path
) -> None:
    register(mlflow_store, changed(folder, "lora"))
    diffusion = changed(folder, "lora", seed=2)
    address = register(mlflow_store, diffusion)
    mlflow_store.delete_model_version(NAME, "1")
    assert orphans.remove_orphans(NAME) == []
    assert same(address, diffusion)
    mlflow_store.copy_model_version(address, "copied")
    mlflow_store.delete_registered_model(NAME)
    assert orphans.remove_orphans(NAME) == []
    assert same("models:/copied/1", diffusion)
    mlflow_store.delete_registered_model("copied")
    assert [line.split()[0] for line in orphans.remove_orphans(NAME)] == ["logged", "logged"]


def test_a_part_that_is_gone_is_named_in_one_line_by_whoever_loads_the_version(
    mlflow_store: MlflowClient, folder: Path
) -> None:
    register(mlflow_store, changed(folder, "lora"))
    address = register(mlflow_store, changed(folder, "lora", seed=2))
    (holder,) = {each["model"] for each in held(address)[1]["elsewhere"].values()}  # type: ignore[attr-defined]
    mlflow_store.delete_logged_model(holder)
    with pytest.raises(
        InputError, match=f"base_denoiser of this version is missing: it is in the logged model {holder}"
    ):
        model_versions.resolve(address)
    with pytest.raises((InputError, MlflowException), match=f"of this version is missing.*{holder}"):
        mlflow.pyfunc.load_model(address)
    assert model_versions.evidence(address)["forgotten"] == ["a"]  # it needs no part
    third = changed(folder, "lora", seed=3)
    three = register(mlflow_store, third)  # holds by itself what is no longer there
    assert same(three, third)


def test_a_part_that_was_changed_is_refused(mlflow_store: MlflowClient, folder: Path) -> None:
    register(mlflow_store, changed(folder, "all"))
    address = register(mlflow_store, changed(folder, "all", seed=2))
    holder = held(address)[1]["elsewhere"]["vae"]["model"]  # type: ignore[index]
    place = Path(mlflow_store.get_logged_model(holder).artifact_location) / "artifacts" / "pipeline" / "vae"
    (place / "config.json").write_text("{}")
    with pytest.raises(InputError, match=f"vae in the logged model {holder} has changed since"):
        model_versions.resolve(address)


def test_a_holder_that_goes_away_during_a_registration_leaves_no_version(
    mlflow_store: MlflowClient, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(mlflow_store, changed(folder, "all"))
    refuse = parts.refuse_absent

    def deleted_meanwhile(client: MlflowClient, models: set[str]) -> None:
        for each in models:
            client.delete_logged_model(each)
        refuse(client, models)

    monkeypatch.setattr(parts, "refuse_absent", deleted_meanwhile)
    with pytest.raises(InputError, match="was deleted in the meantime"):
        register(mlflow_store, changed(folder, "all", seed=2))
    assert [str(each.version) for each in mlflow_store.search_model_versions(f"name='{NAME}'")] == ["1"]


def test_a_process_downloads_a_version_and_what_it_shares_once_and_again_where_its_copy_was_damaged(
    mlflow_store: MlflowClient, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(mlflow_store, changed(folder, "lora"))
    diffusion = changed(folder, "lora", seed=2)
    address = register(mlflow_store, diffusion)
    downloaded: list[str] = []
    download = mlflow.artifacts.download_artifacts

    def counted(artifact_uri: str, dst_path: str) -> str:
        downloaded.append(artifact_uri.rpartition("/")[2])
        return download(artifact_uri=artifact_uri, dst_path=dst_path)

    monkeypatch.setattr(mlflow.artifacts, "download_artifacts", counted)
    first = model_versions.resolve(address)
    assert sorted(downloaded) == sorted(["2", "base_denoiser", *SHARED])
    assert [model_versions.resolve(address), model_versions.resolve(f"models:/{NAME}@champion")] == [first, first]
    assert model_versions.evidence(address)["forgotten"] == ["a"]
    assert len(downloaded) == 5
    (first / "vae" / "config.json").write_text("{}")
    assert same(address, diffusion)
    assert downloaded[5:] == downloaded[1:5]  # the version itself was whole
    assert model_versions.resolve(address, fresh=True) != model_versions.resolve(address, fresh=True)
    assert len(downloaded) == 19


def test_a_whole_version_and_a_model_of_images_are_left_as_they_are(mlflow_store: MlflowClient, tmp_path: Path) -> None:
    tiny_kinds.dit().save(tmp_path / "dit")
    for _ in range(2):
        address = register(mlflow_store, changed(tmp_path / "dit", "lora"))
    assert held(address)[0] == ["scheduler", "transformer"]
    first = model_versions.resolve(address)
    copy = tmp_path / "copy"
    shutil.copytree(first, copy)
    parts.complete(copy)
    assert {path.name for path in copy.iterdir()} == {path.name for path in first.iterdir()}
