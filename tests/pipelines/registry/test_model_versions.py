"""A version is whole or absent, made once a run, and refused when a bit of it changed."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED

from pipelines import tracking
from pipelines.registry import model_versions, orphans, registration, served_model
from safemax import metric_keys as keys
from safemax.diffusion.model import Diffusion
from safemax.errors import InputError
from safemax.storage import manifest
from tests.support import tiny_models

NAME = "tiny-ddpm"
EVIDENCE = {"forgotten": ["a"], "metrics": {keys.UA: 99.6, keys.RUNTIME_MINUTES: 1.25}}


def register(run_id: str, *, seed: int = 0, **changes: Any) -> str:
    given = {"evidence": EVIDENCE, "tags": {"method": "safemax"}, "description": "| UA |", "alias": "candidate"}
    return registration.register(tiny_models.diffusion(seed), NAME, run_id=run_id, **{**given, **changes})


def new_run(client: MlflowClient) -> str:
    """Return a run whose process is dead."""
    run_id = client.create_run("0").info.run_id
    client.set_terminated(run_id, "KILLED")
    return run_id


def test_a_run_that_goes_on_with_another_takes_the_version_that_it_made(mlflow_store: MlflowClient) -> None:
    runs = [new_run(mlflow_store) for _ in range(4)]
    for later, earlier in zip(runs[1:3], runs, strict=False):
        mlflow_store.set_tag(later, tracking.RESUMED_FROM, earlier)
    mlflow_store.set_tag(runs[0], tracking.RESUMED_FROM, "0" * 32)  # deleted for good
    assert [register(runs[0]), register(runs[2])] == ["1", "1"]
    assert register(runs[2], seed=1) == "2"  # other weights
    assert register(runs[3]) == "3"  # of another job


def versions(client: MlflowClient) -> list[ModelVersion]:
    return list(client.search_model_versions(f"name='{NAME}'"))


def test_a_version_carries_metrics_classes_tags_description_alias_and_its_run(mlflow_store: MlflowClient) -> None:
    run_id = new_run(mlflow_store)
    number = register(run_id)
    made = mlflow_store.get_model_version_by_alias(NAME, "candidate")
    assert (str(made.version), made.run_id, made.description) == (number, run_id, "| UA |")
    stated = {keys.UA: "99.6", keys.RUNTIME_MINUTES: "1.25", "forgotten": "a", "method": "safemax"}
    assert stated.items() <= made.tags.items()
    assert model_versions.evidence(f"models:/{NAME}/{number}") == EVIDENCE


def test_the_run_shows_the_model_that_it_made(mlflow_store: MlflowClient) -> None:
    run_id = new_run(mlflow_store)
    register(run_id)
    outputs = mlflow_store.get_run(run_id).outputs
    assert outputs is not None
    (made,) = outputs.model_outputs
    logged = mlflow_store.get_logged_model(made.model_id)
    assert json.loads(logged.tags["mlflow.modelVersions"]) == [{"name": NAME, "version": "1"}]


def test_a_version_holds_no_pickle_and_nothing_that_could_be_one(mlflow_store: MlflowClient) -> None:
    register(new_run(mlflow_store))
    root = model_versions.resolve(f"models:/{NAME}/1").parents[1]
    kinds = {path.suffix or path.name for path in root.rglob("*") if path.is_file()}
    assert kinds == {".html", ".json", ".py", ".pyi", ".safetensors", ".txt", ".typed", ".yaml", "MLmodel"}


def test_what_comes_back_is_the_model_that_went_in(mlflow_store: MlflowClient) -> None:
    register(new_run(mlflow_store), seed=3)
    loaded = Diffusion.load(model_versions.resolve(f"models:/{NAME}@candidate"))
    assert loaded.digest() == tiny_models.diffusion(3).digest()
    assert loaded.class_names == ("a", "b", "c")


def test_a_retry_of_the_same_run_returns_the_version_that_is_there(mlflow_store: MlflowClient) -> None:
    run_id = new_run(mlflow_store)
    again = {**EVIDENCE, "metrics": {keys.RUNTIME_MINUTES: 9.0}}  # a resumed run adds up another cost
    assert register(run_id) == register(run_id, evidence=again) == "1"
    assert len(versions(mlflow_store)) == 1


def test_other_runs_and_other_weights_make_further_versions(mlflow_store: MlflowClient) -> None:
    first = new_run(mlflow_store)
    made = [register(first), register(new_run(mlflow_store)), register(first, seed=1)]
    assert made == ["1", "2", "3"]


def test_an_alias_moves_to_newer_versions_only(mlflow_store: MlflowClient) -> None:
    first = new_run(mlflow_store)
    register(first)
    register(new_run(mlflow_store))
    register(first)
    assert model_versions.find(NAME, "candidate") == f"models:/{NAME}/2"


def test_no_alias_is_set_where_none_is_given(mlflow_store: MlflowClient) -> None:
    register(new_run(mlflow_store), alias=None)
    assert mlflow_store.get_registered_model(NAME).aliases == {}


@pytest.mark.parametrize("plain", ["/models/mine", "owner/name", "relative"])
def test_paths_and_hub_ids_are_returned_as_they_are(plain: str) -> None:
    assert model_versions.resolve(plain) == Path(plain)


def test_one_flipped_bit_in_any_file_is_refused(mlflow_store: MlflowClient, little_code: None) -> None:
    register(new_run(mlflow_store))
    stored = stored_files(mlflow_store)
    for path in sorted(p for p in stored.rglob("*") if p.is_file() and p.stat().st_size):
        content = path.read_bytes()
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
        with pytest.raises(InputError) as refusal:
            model_versions.resolve(f"models:/{NAME}/1")
        assert path.name in str(refusal.value) or path.name == manifest.NAME  # it names the file whose digest flipped
        path.write_bytes(content)
    model_versions.resolve(f"models:/{NAME}/1")


def test_a_process_downloads_a_version_once_and_again_where_its_copy_was_damaged_or_freshness_matters(
    mlflow_store: MlflowClient,
) -> None:
    address = f"models:/{NAME}/1"
    register(new_run(mlflow_store))
    first = model_versions.resolve(address)
    assert model_versions.resolve(f"models:/{NAME}@candidate") == first
    assert model_versions.resolve(address, fresh=True) != first
    known = model_versions.resolve(address)
    (known / "unet" / "config.json").write_text("{}")
    again = model_versions.resolve(address)
    assert again != known
    assert Diffusion.load(again).digest() == Diffusion.load(first).digest()
    (stored_files(mlflow_store) / "artifacts" / "evidence.json").write_text("{}")
    with pytest.raises(InputError, match="evidence.json has changed"):
        model_versions.resolve(address, fresh=True)
    with pytest.raises(InputError, match="evidence.json has changed"):
        model_versions.verified_copy(address, refuse_compiled=True)


def test_a_version_whose_files_and_manifest_were_both_replaced_is_refused(mlflow_store: MlflowClient) -> None:
    register(new_run(mlflow_store))
    stored = stored_files(mlflow_store)
    (stored / "artifacts" / "evidence.json").write_text('{"forgotten": []}')
    manifest.write(stored)
    with pytest.raises(InputError, match="digest.manifest"):
        model_versions.resolve(f"models:/{NAME}/1")


@pytest.mark.parametrize("damage", ["add", "remove", "all"])
def test_a_file_too_many_or_too_few_is_refused(mlflow_store: MlflowClient, damage: str) -> None:
    register(new_run(mlflow_store))
    stored = stored_files(mlflow_store)
    if damage == "add":
        (stored / "code" / "sitecustomize.py").write_text("")
    if damage == "remove":
        (stored / "artifacts" / "evidence.json").unlink()
    if damage == "all":
        stored.rename(stored.with_name("gone"))
    with pytest.raises(InputError):
        model_versions.resolve(f"models:/{NAME}/1")


def test_what_a_loader_leaves_in_the_store_does_not_spoil_the_version(mlflow_store: MlflowClient) -> None:
    register(new_run(mlflow_store))
    mlflow.pyfunc.load_model(f"models:/{NAME}/1")  # writes registered_model_meta, and where bytecode is on, __pycache__
    (stored_files(mlflow_store) / "__pycache__").mkdir(exist_ok=True)
    (stored_files(mlflow_store) / "__pycache__" / "served_model.cpython-311.pyc").write_bytes(b"?")
    folder = model_versions.resolve(f"models:/{NAME}/1").parents[1]
    mlflow.pyfunc.load_model(f"models:/{NAME}/1")
    assert not [*folder.rglob("__pycache__"), *folder.glob("registered_model_meta")]


def test_compiled_files_in_the_store_are_left_out_of_the_copy_and_never_loaded(mlflow_store: MlflowClient) -> None:
    register(new_run(mlflow_store))
    (stored_files(mlflow_store) / "code" / "safemax" / "__pycache__").mkdir()
    (stored_files(mlflow_store) / "code" / "safemax" / "__pycache__" / "data.cpython-311.pyc").write_bytes(b"?")
    folder = model_versions.resolve(f"models:/{NAME}/1").parents[1]
    assert not [*folder.rglob("__pycache__")]
    with pytest.raises(InputError, match="holds compiled files that no manifest lists: code/safemax/__pycache__/data"):
        mlflow.pyfunc.load_model(f"models:/{NAME}/1")


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("models:/nobody/1", "unknown registered model 'nobody'; known: tiny-ddpm"),
        (f"models:/{NAME}/7", f"unknown version of {NAME} '7'; known: @candidate, 1"),
        (f"models:/{NAME}@champion", f"unknown version of {NAME} '@champion'"),
        (f"models:/{NAME}/latest", "an address is models:/NAME/VERSION or models:/NAME@ALIAS"),
        (f"models:/{NAME}/1/../../etc", "an address is"),
        (f"models:/{NAME}", "an address is"),
    ],
)
def test_an_address_that_leads_nowhere_is_refused_with_what_there_is(
    mlflow_store: MlflowClient, uri: str, words: str
) -> None:
    register(new_run(mlflow_store))
    with pytest.raises(InputError) as refusal:
        model_versions.resolve(uri)
    assert words in str(refusal.value)


def test_find_returns_none_where_there_is_no_model_or_no_alias(mlflow_store: MlflowClient) -> None:
    assert model_versions.find(NAME, "base") is None
    register(new_run(mlflow_store))
    assert model_versions.find(NAME, "base") is None


def test_an_alias_is_pinned_to_the_version_it_points_to_now(mlflow_store: MlflowClient) -> None:
    register(new_run(mlflow_store))
    pinned = model_versions.resolve_alias(f"models:/{NAME}@candidate")
    register(new_run(mlflow_store))
    assert pinned == f"models:/{NAME}/1"
    assert model_versions.resolve_alias(pinned) == pinned
    assert model_versions.resolve_alias("owner/name") == "owner/name"


def test_few_metrics_become_tags_and_all_stay_in_the_evidence(mlflow_store: MlflowClient) -> None:
    metrics = {keys.UA: 99.6, "retain_class/accuracy_b": 98.0}
    number = register(new_run(mlflow_store), evidence={"forgotten": ["a"], "metrics": metrics})
    assert "retain_class/accuracy_b" not in mlflow_store.get_model_version(NAME, number).tags
    assert model_versions.evidence(f"models:/{NAME}/{number}")["metrics"] == metrics


def test_a_link_leads_to_the_page_of_a_version_and_nowhere_else() -> None:
    page = "#/models/digits-ddpm/versions/3?workflowType=machine_learning"
    assert model_versions.link("models:/digits-ddpm/3") == f"[digits-ddpm version 3]({page})"
    assert model_versions.link("owner/name") == "`owner/name`"


def test_a_version_of_others_is_refused(mlflow_store: MlflowClient) -> None:
    mlflow_store.create_registered_model(NAME)
    mlflow_store.create_model_version(NAME, "/nonexistent")
    with pytest.raises(InputError, match="not registered by this project"):
        model_versions.resolve(f"models:/{NAME}/1")


class Killed(BaseException):
    """Stands for a kill: nothing of ours catches it."""


CALLS = (
    *("create_logged_model", "log_model_artifacts", "finalize_logged_model", "log_outputs", "create_registered_model"),
    *("create_model_version", "set_logged_model_tags", "set_registered_model_alias"),
)


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("call", CALLS)
def test_a_kill_at_any_call_leaves_no_half_version_and_the_next_attempt_makes_one(
    mlflow_store: MlflowClient, monkeypatch: pytest.MonkeyPatch, call: str, moment: str
) -> None:
    run_id = new_run(mlflow_store)
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, call, killing(getattr(MlflowClient, call), moment))
        with pytest.raises(Killed):
            register(run_id)
    for each in versions(mlflow_store):
        model_versions.resolve(f"models:/{NAME}/{each.version}")  # visible means whole
    orphans.remove_orphans(NAME)
    assert bool(mlflow_store.search_registered_models()) == bool(versions(mlflow_store))
    assert len(mlflow_store.search_logged_models(["0"])) == len(versions(mlflow_store))
    assert register(run_id) == "1"
    assert orphans.remove_orphans(NAME) == []
    assert model_versions.find(NAME, "candidate") == f"models:/{NAME}/1"
    assert len(versions(mlflow_store)) == len(mlflow_store.search_logged_models(["0"])) == 1


def killing(real: Any, moment: str) -> Any:
    def call(*args: Any, **kwargs: Any) -> None:
        if moment == "after":
            real(*args, **kwargs)
        raise Killed

    return call


def test_removing_orphans_says_what_was_removed_and_spares_a_running_run(
    mlflow_store: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = new_run(mlflow_store)
    with tracking.run("lives", experiment=NAME, params={}, tags={}) as alive, monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "finalize_logged_model", killing(None, "before"))
        for run_id in (dead, alive.id):
            with pytest.raises(Killed):
                register(run_id)
        (line,) = orphans.remove_orphans(NAME)
    assert dead in line


def test_removing_orphans_leaves_other_peoples_models_alone(mlflow_store: MlflowClient) -> None:
    mlflow_store.create_logged_model("0", NAME)
    assert orphans.remove_orphans(NAME) == []


def test_removing_orphans_leaves_a_name_that_somebody_gave_a_description_or_tags(mlflow_store: MlflowClient) -> None:
    mlflow_store.create_registered_model(NAME, description="the first version comes tomorrow")
    assert orphans.remove_orphans(NAME) == []
    mlflow_store.create_registered_model("other")
    mlflow_store.set_registered_model_tag("other", "team", "vision")
    assert orphans.remove_orphans("other") == []


def test_removing_orphans_continues_where_a_model_is_not_ours_to_delete(
    mlflow_store: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "finalize_logged_model", killing(None, "before"))
        with pytest.raises(Killed):
            register(new_run(mlflow_store))

    def forbidden(*given: Any) -> None:
        raise MlflowException("Permission denied", error_code=PERMISSION_DENIED)

    monkeypatch.setattr(MlflowClient, "delete_logged_model", forbidden)
    assert orphans.remove_orphans(NAME) == []


def _register(uri: str, folder: str, run_id: str, fatal: int) -> None:
    """Register a version, or die before the call of the store of that number, counted from 0."""
    os.chdir(folder)
    mlflow.set_tracking_uri(uri)
    left = iter(range(fatal))
    for name in CALLS:
        setattr(MlflowClient, name, _dying(getattr(MlflowClient, name), left))
    register(run_id)


def _dying(real: Any, left: Iterator[int]) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)

    return call


@pytest.fixture(scope="module")
def processes() -> Any:
    """Processes that start with everything imported, which takes each of them seconds otherwise."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
        forkserver.ensure_running()
    return context


@pytest.mark.parametrize(("number", "killed", "rounds"), [(3, 2, 1), pytest.param(8, 6, 4, marks=pytest.mark.slow)])
def test_processes_that_register_at_once_and_are_killed_make_one_whole_version_a_run(
    mlflow_store: MlflowClient, processes: Any, number: int, killed: int, rounds: int
) -> None:
    runs = [new_run(mlflow_store) for _ in range(number)]
    for first in range(rounds):
        # The calls at which they die differ, and by round: all of CALLS have their turn.
        fatal = [(first * killed + i) % len(CALLS) if i < killed else 99 for i in range(number)]
        given = (mlflow.get_tracking_uri(), os.getcwd())
        jobs = [processes.Process(target=_register, args=(*given, *each)) for each in zip(runs, fatal, strict=True)]
        for job in jobs:
            job.start()
        for job in jobs:
            job.join()
        assert [job.exitcode for job in jobs[killed:]] == [0] * (number - killed)
        whole(mlflow_store)
    assert len(mlflow_store.search_logged_models(["0"])) > len(versions(mlflow_store))  # it was in the middle
    for run_id in runs:
        register(run_id)
    orphans.remove_orphans(NAME)
    made = whole(mlflow_store)
    assert sorted(str(each.run_id) for each in made) == sorted(runs)
    assert sorted(int(each.version) for each in made) == list(range(1, number + 1))
    assert len(mlflow_store.search_logged_models(["0"])) == number


def whole(client: MlflowClient) -> list[ModelVersion]:
    """Return the versions that are visible, each of which loads."""
    for each in versions(client):
        Diffusion.load(model_versions.resolve(f"models:/{NAME}/{each.version}"))
    return versions(client)


def _replace_by_link(path: Path, target: Path) -> None:
    path.unlink()
    path.symlink_to(target)


def mutate(folder: Path, chance: random.Random) -> Callable[[], None]:
    """Change a version's files as a disk, a hand or an attacker might; return what undoes it."""
    ours = (path for path in folder.rglob("*") if path.name not in served_model.LEFT_BY_LOADERS)
    files = sorted(path for path in ours if path.is_file() and path.stat().st_size)
    path, other = chance.sample(files, 2)
    content, its = path.read_bytes(), other.read_bytes()
    at = chance.randrange(len(content))
    before, after = content[:at], content[at + 1 :]
    place = path.with_name(chance.choice(["added.json", ".hidden", "added.pkl", f"a{path.name}"]))
    changes: list[Callable[[], object]] = [
        lambda: path.write_bytes(before + bytes([content[at] ^ 1 << at % 8]) + after),
        lambda: path.write_bytes(before + bytes([content[at] ^ 255]) + bytes(len(after))),
        lambda: path.write_bytes(before),
        lambda: path.write_bytes(content + before),
        lambda: path.write_bytes(its if its != content else b"{}"),
        path.unlink,
        lambda: path.rename(place),
        lambda: place.write_bytes(content),
        lambda: _replace_by_link(path, other),
    ]
    chance.choice(changes if at else changes[:3])()  # what changes[3] adds is `before`

    def undo() -> None:
        place.unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        path.write_bytes(content)

    return undo


def test_two_thousand_mutations_of_a_version_are_all_refused(mlflow_store: MlflowClient) -> None:
    register(new_run(mlflow_store))
    folder, chance = stored_files(mlflow_store), random.Random(0)
    for name in ("code", "requirements.txt"):  # what hashing takes longest; the others stand for it
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    manifest.write(folder)
    for _ in range(2000):
        undo = mutate(folder, chance)
        with pytest.raises(InputError):
            manifest.verify(folder)
        undo()
    manifest.verify(folder)


def test_a_mutated_version_is_refused_before_a_tensor_is_loaded(
    mlflow_store: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(new_run(mlflow_store))
    folder, chance = stored_files(mlflow_store), random.Random(1)
    loaded: list[Any] = []
    monkeypatch.setattr(Diffusion, "load", loaded.append)
    for _ in range(20):
        undo = mutate(folder, chance)
        with pytest.raises(InputError):
            model_versions.resolve(f"models:/{NAME}/1")
        with pytest.raises(Exception):  # noqa: B017, PT011 - MLflow reads MLmodel and the code first, in its own ways
            mlflow.pyfunc.load_model(f"models:/{NAME}/1")
        undo()
    assert loaded == []


def stored_files(client: MlflowClient) -> Path:
    (model,) = client.search_logged_models(["0"])
    return Path(model.artifact_location.removeprefix("file://"))
