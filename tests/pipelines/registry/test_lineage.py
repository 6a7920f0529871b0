"""Lineage follows what is there, by digest where a name fails, and always ends."""

from __future__ import annotations

import json

import pytest
from mlflow import MlflowClient

from pipelines.registry import aliases, lineage, model_versions, registration
from pipelines.rollback import rollback
from pipelines.versions import versions
from safemax.diffusion.model import Diffusion
from safemax.errors import InputError
from tests.support import tiny_models

pytestmark = pytest.mark.usefixtures("little_code")
NAME = "tiny-ddpm"


def address(number: str, name: str = NAME) -> str:
    return f"models:/{name}/{number}"


def register(client: MlflowClient, seed: int, *, parent: str | None = None, name: str = NAME, of: int = 0) -> str:
    """Register the tiny model of a seed as a base, or as a correction of the model of seed `of`; return its address."""
    run_id = client.create_run("0").info.run_id
    client.set_terminated(run_id, "FINISHED")
    evidence = {
        "forgotten": ["a"] if parent else [],
        "parent": parent,
        "parent_digest": tiny_models.diffusion(of).digest(),
    }
    tags = {"parent": parent} if parent else {}
    diffusion = tiny_models.diffusion(seed)
    number = registration.register(
        diffusion, name, run_id=run_id, evidence=evidence, tags=tags, description="", alias=None if parent else "base"
    )
    return address(number, name)


def tags(client: MlflowClient, which: str) -> dict[str, str]:
    return dict(model_versions.version_of(which).tags)


def test_the_origin_is_the_nearest_ancestor_that_has_forgotten_nothing(mlflow_store: MlflowClient) -> None:
    base = register(mlflow_store, 0)
    first = register(mlflow_store, 1, parent=base)
    second = register(mlflow_store, 2, parent=first, of=1)
    assert lineage.origin(second, "auto") == lineage.origin(first, "auto") == base
    assert lineage.origin(base, "auto") is None
    assert lineage.origin(second, first) == first
    assert lineage.origin(second, "none") is None


def test_a_parent_that_is_there_is_recorded_with_its_digest(mlflow_store: MlflowClient) -> None:
    base = register(mlflow_store, 0)
    made = tags(mlflow_store, register(mlflow_store, 1, parent=base))
    assert (made["parent"], made["parent.digest"]) == (base, tiny_models.diffusion(0).digest())


@pytest.mark.parametrize("what", ["registered model", "version", "registered model and made anew"])
def test_a_parent_that_was_deleted_during_the_correction_is_no_parent(mlflow_store: MlflowClient, what: str) -> None:
    base = register(mlflow_store, 0)
    if what == "version":
        mlflow_store.delete_model_version(NAME, "1")
    else:
        mlflow_store.delete_registered_model(NAME)
    if what.endswith("anew"):
        register(mlflow_store, 5)
    made = register(mlflow_store, 1, parent=base)
    assert "parent" not in tags(mlflow_store, made)
    assert tags(mlflow_store, made)["parent.deleted"] == base
    assert lineage.origin(made, "auto") == (base if what.endswith("anew") else None)  # the base that is there now


def test_a_parent_that_was_renamed_during_the_correction_is_recorded_under_its_new_name(
    mlflow_store: MlflowClient,
) -> None:
    base = register(mlflow_store, 0)
    mlflow_store.rename_registered_model(NAME, "renamed")
    made = register(mlflow_store, 1, parent=base)
    assert tags(mlflow_store, made)["parent"] == "models:/renamed/1"


@pytest.mark.parametrize("ring", [("1",), ("1", "2"), ("1", "2", "3")], ids=len)
def test_a_line_that_was_tied_into_a_ring_ends(mlflow_store: MlflowClient, ring: tuple[str, ...]) -> None:
    base = register(mlflow_store, 0)
    for seed in (1, 2, 3):
        register(mlflow_store, seed, parent=base)
    names = [str(int(each) + 1) for each in ring]
    for child, parent in zip(names, [*names[1:], names[0]], strict=True):
        mlflow_store.set_model_version_tag(NAME, child, "parent", address(parent))
        mlflow_store.delete_model_version_tag(NAME, child, "parent.digest")
    last = base if len(ring) == 1 else address(names[-1])
    assert lineage.origin(address(names[0]), "auto") == last


@pytest.mark.parametrize("old", [False, True], ids=["with parent.digest", "registered before that tag"])
def test_a_renamed_parent_is_found_by_its_weights(mlflow_store: MlflowClient, old: bool) -> None:
    base = register(mlflow_store, 0)
    first = register(mlflow_store, 1, parent=base)
    register(mlflow_store, 2, parent=first, of=1)
    for number in ("2", "3") if old else ():
        mlflow_store.delete_model_version_tag(NAME, number, "parent.digest")
    mlflow_store.rename_registered_model(NAME, "renamed")
    assert lineage.origin("models:/renamed/3", "auto") == "models:/renamed/1"
    mlflow_store.create_registered_model(NAME)  # another model under the old name
    register(mlflow_store, 7)
    if not old:
        assert lineage.origin("models:/renamed/3", "auto") == "models:/renamed/1"


def test_an_ancestor_that_was_deleted_is_named(mlflow_store: MlflowClient) -> None:
    first = register(mlflow_store, 1, parent=register(mlflow_store, 0))
    second = register(mlflow_store, 2, parent=first, of=1)
    mlflow_store.delete_model_version(NAME, "1")
    for which in (first, second):
        with pytest.raises(
            InputError, match=f"^{address('1')}, the parent of {first}, was deleted, and no version has"
        ):
            lineage.origin(which, "auto")


def test_unchanged_weights_are_not_their_own_parent(mlflow_store: MlflowClient) -> None:
    base = register(mlflow_store, 0)
    same = register(mlflow_store, 0, parent=base)
    mlflow_store.delete_model_version(NAME, "1")
    with pytest.raises(InputError, match="was deleted"):
        lineage.origin(same, "auto")


def champions(client: MlflowClient) -> None:
    """Register four versions and promote each in turn."""
    register(client, 0)
    for seed in (1, 2, 3):
        register(client, seed, parent=address("1"))
    for before, after in ((None, "1"), ("1", "2"), ("2", "3"), ("3", "4")):
        aliases.move(NAME, "champion", aliases.new_move(aliases.PROMOTE, before, after, why="", run_id=f"run{after}"))


@pytest.mark.parametrize(
    ("deleted", "restored", "passed_over"),
    [(("3", "2"), "1", "3, 2"), (("2",), "3", ""), (("4",), "3", "4")],
    ids=str,
)
def test_rollback_goes_to_the_newest_champion_that_is_there_and_names_the_deleted(
    mlflow_store: MlflowClient,
    capsys: pytest.CaptureFixture[str],
    deleted: tuple[str, ...],
    restored: str,
    passed_over: str,
) -> None:
    champions(mlflow_store)
    for number in deleted:
        mlflow_store.delete_model_version(NAME, number)
    rollback([f"--model={NAME}"])
    assert model_versions.aliased_number(NAME, "champion") == restored
    out = capsys.readouterr().out
    assert (f"warning: passed over, as deleted since: {passed_over}\n" in out) == bool(passed_over)
    if restored != "1":
        rollback([f"--model={NAME}"])
        assert int(model_versions.aliased_number(NAME, "champion") or 9) < int(restored)


def test_where_all_champions_before_were_deleted_the_refusal_names_them(mlflow_store: MlflowClient) -> None:
    champions(mlflow_store)
    for number in ("1", "2", "3"):
        mlflow_store.delete_model_version(NAME, number)
    with pytest.raises(InputError, match="has no recorded version before 4; deleted since: 3, 2, 1"):
        rollback([f"--model={NAME}"])
    assert model_versions.aliased_number(NAME, "champion") == "4"


def test_a_renamed_model_is_rolled_back_like_any_other(mlflow_store: MlflowClient) -> None:
    champions(mlflow_store)
    mlflow_store.rename_registered_model(NAME, "renamed")
    rollback(["--model=renamed"])
    assert model_versions.aliased_number("renamed", "champion") == "3"


BAD_MOVES = ["", "not JSON", "null", "5", "[]", "{}", "[" * 5000, json.dumps({"kind": "promote", "from": 1, "to": "2"})]


@pytest.mark.parametrize(
    "text", [*BAD_MOVES, '{"kind": "promote", "from": "x", "to": "2"}', '{"kind": "x", "to": "2"}']
)
def test_a_tag_that_holds_no_move_is_named(
    mlflow_store: MlflowClient, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    mlflow_store.create_registered_model(NAME)
    mlflow_store.create_model_version(NAME, "nowhere")
    mlflow_store.set_registered_model_alias(NAME, "champion", "1")
    mlflow_store.set_registered_model_tag(NAME, "move.champion.00001.abc", text or " ")
    with pytest.raises(InputError, match="^the tag move.champion.00001.abc of tiny-ddpm does not hold a recorded move"):
        rollback([f"--model={NAME}"])
    versions([f"--model={NAME}"])
    assert "warning: the tag move.champion.00001.abc" in capsys.readouterr().err


@pytest.mark.parametrize("forgotten", [None, "a", 5, ["a", None], {"a": 1}], ids=str)
def test_evidence_that_does_not_list_the_forgotten_classes_is_refused(
    mlflow_store: MlflowClient, monkeypatch: pytest.MonkeyPatch, forgotten: object
) -> None:
    monkeypatch.setattr(model_versions, "evidence", lambda address: {"forgotten": forgotten})
    with pytest.raises(InputError, match="^the evidence of models:/x/1 does not list the classes"):
        lineage.forgotten("models:/x/1")
    monkeypatch.setattr(model_versions, "evidence", lambda address: {})
    with pytest.raises(InputError, match="does not list the classes"):
        lineage.forgotten("models:/x/1")


def test_a_version_whose_tags_an_import_lost_is_read_from_its_evidence_once_its_digest_is_restored(
    mlflow_store: MlflowClient,
) -> None:
    base = register(mlflow_store, 0)
    made = register(mlflow_store, 1, parent=base)
    digest = tags(mlflow_store, made)[model_versions.MANIFEST]
    for each in (base, made):
        for key in tags(mlflow_store, each):
            mlflow_store.delete_model_version_tag(NAME, each[-1], key)
    with pytest.raises(InputError, match=f"no tag digest.manifest.* set that tag of the version to {digest}"):
        model_versions.resolve(made)
    mlflow_store.set_model_version_tag(NAME, made[-1], model_versions.MANIFEST, digest)
    assert lineage.classes_of(made, "auto", tiny_models.dataset()) == (0,)
    assert lineage.forgotten(made) == ["a"]
    assert lineage.parent_of(model_versions.version_of(made)) == base


def test_a_base_whose_tag_of_its_shape_is_lost_still_refuses_another_shape(mlflow_store: MlflowClient) -> None:
    base = register(mlflow_store, 0)
    mlflow_store.delete_model_version_tag(NAME, base[-1], registration.SHAPE)
    registration.refuse_other_shape(NAME, tiny_models.diffusion(3))
    with pytest.raises(InputError, match="has images of 1x8x8, this one of 1x16x16"):
        registration.refuse_other_shape(NAME, Diffusion.create("small", (1, 16, 16), ("a", "b", "c")))


@pytest.mark.parametrize("content", [b"", b"no JSON", b"[]", b"5", b"[" * 100_000])
def test_evidence_that_is_no_json_object_is_refused_in_one_line(content: bytes) -> None:
    with pytest.raises(InputError, match="evidence.json is not a JSON object"):
        model_versions.json_object(content, "evidence.json")
