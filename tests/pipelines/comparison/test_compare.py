"""A comparison at the smallest size: three classes of 8x8 images, an untrained base, judges of a few steps."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest
from PIL import Image

from pipelines import compare as compare_module
from pipelines import tracking
from pipelines.comparison import runner
from pipelines.comparison.child_runs import KIND
from safemax import metric_keys as keys
from safemax.errors import InputError, Stopped
from tests.support import ray_clusters, tiny_models

EXPERIMENT = "tiny-ddpm"
SA = "selective_amnesia"
FEW = f"{SA}.fisher_images=4,{SA}.fisher_times=2,{SA}.replay_images=2,{SA}.replay_steps=2"
SIZES = [
    *("--steps=2", "--batch-size=8", "--gold-steps=2", "--judge-steps=5", "--reject-judges=1", "--protocol=custom"),
    *("--sampler-steps=2", "--forget-samples=6", "--retain-samples=6", "--second-samples=5", "--user-samples=0"),
    "--device=cpu",
]


@pytest.fixture(scope="module")
def place(mlflow_module_store, tmp_path_factory):
    """Return a folder with data and base; the store is empty."""
    root = tmp_path_factory.mktemp("compare")
    tiny_models.write_images(root / "tiny")
    tiny_models.diffusion().save(root / "base")
    return root


def compare(place: Path, *more: str) -> None:
    given = {word.partition("=")[0] for word in more}
    sizes = [word for word in SIZES if word.partition("=")[0] not in given]
    compare_module.compare([f"--data={place}/tiny", f"--model={place}/base", f"--name={EXPERIMENT}", *sizes, *more])


def runs(store, filters: str):
    selected = store.search_runs([store.get_experiment_by_name(EXPERIMENT).experiment_id], filters)
    return sorted(selected, key=lambda each: each.info.start_time)


def children(store):
    return runs(store, f"tags.kind = '{KIND}'")


def base_fid(run):
    return tracking.stored_table(run.info.run_id, "metrics").set_index("metric").loc[keys.FID_JUDGE, "base"]


def artifact(store, run, path: str, folder: Path) -> Path:
    return Path(store.download_artifacts(run.info.run_id, path, str(folder)))


@pytest.fixture(scope="module")
def first(place, mlflow_module_store):
    """Return the run of a comparison of three methods on two classes with two seeds, with gold and ablation."""
    compare(
        place, f"--methods=safemax,{SA},salun", f"--overrides={FEW}", "--classes=a,c", "--seeds=2", "--ablation=true",
        "--lambdas=0,1", f"--output={place}/results",
    )  # fmt: skip
    (parent,) = runs(mlflow_module_store, "tags.kind = 'comparison'")
    return parent


def test_a_run_has_a_child_for_each_method_class_and_seed_and_for_each_gold_model(first, mlflow_module_store):
    made = [each.info.run_name for each in children(mlflow_module_store)]
    for label in ("safemax", SA, "salun"):
        assert sum(name.startswith(f"{label}-tiny-forget") for name in made) == 4
    assert sorted(name for name in made if name.startswith("gold")) == ["gold-tiny-forgeta", "gold-tiny-forgetc"]
    # lambda = 1 as in the paper is safemax itself; lambda 0 is one run in both weightings: (0, 1 equal) x 2 seeds.
    assert sum("@lambda" in name for name in made) == 4
    assert len(made) == 12 + 2 + 4
    assert {each.data.tags["mlflow.parentRunId"] for each in children(mlflow_module_store)} == {first.info.run_id}


def test_children_register_nothing(first, mlflow_module_store):
    assert not list(mlflow_module_store.search_registered_models())
    assert not list(mlflow_module_store.search_model_versions())


def test_the_tables_are_the_childrens_numbers(first, mlflow_module_store, tmp_path):
    written = pd.read_csv(artifact(mlflow_module_store, first, "comparison/table2.csv", tmp_path), index_col=0)
    assert list(written.index) == ["a", "c", "mean", "sd"]
    mine = [each for each in children(mlflow_module_store) if each.info.run_name.startswith("salun-tiny-forgetc")]
    values = [each.data.metrics[keys.FID_JUDGE] for each in mine]
    assert written.loc["c", "salun FID"] == pytest.approx(sum(values) / 2)
    assert written.loc["c", "base FID"] == pytest.approx(base_fid(mine[0]))
    gold = next(each for each in children(mlflow_module_store) if each.info.run_name == "gold-tiny-forgetc")
    assert written.loc["c", "gold FID"] == pytest.approx(gold.data.metrics[keys.FID_JUDGE])
    assert "gold RTE min" not in written


def test_tables_figures_and_note_are_on_the_run(first, mlflow_module_store):
    names = {Path(each.path).name for each in mlflow_module_store.list_artifacts(first.info.run_id, "comparison")}
    assert {
        "table1.csv",
        "table1.md",
        "table1.png",
        "table2.csv",
        "paired.csv",
        "standings.csv",
        "standings.png",
        "children.csv",
        "comparison.md",
    } <= names
    assert {"figure1.png", "figure2.png", "figure3.png", "figure3.csv", "forgotten-a.png", "forgotten-c.png"} <= names
    note = first.data.tags["mlflow.note.content"]
    for part in ("One row per variant", "Table 1", "Table 2", "Paired differences", "Figure 1", "Figure 2", "Figure 3"):
        assert part in note
    assert "(paper)" not in note  # the paper has no such data
    assert "&path=pictures/comparison/figure2.png)" in note
    assert first.info.status == "FINISHED"
    assert "comparison/children_minutes" in first.data.metrics


def test_the_page_in_the_output_folder_links_the_pictures_next_to_it(first, place):
    folder = Path(place) / "results" / "compare-tiny"
    linked = re.findall(r"!\[.*?\]\((.*?)\)", (folder / "comparison.md").read_text())
    assert linked == ["standings.png", "figure1.png", "figure2.png", "figure3.png"]
    assert all((folder / name).is_file() for name in linked)


def test_a_table_of_many_variants_has_a_row_per_variant_and_value(first, place, mlflow_module_store, tmp_path):
    labels = [f"safemax@{i}" for i in range(5)]
    overrides = ",".join(f"{each}.lr={i + 1}e-5" for i, each in enumerate(labels))
    compare(place, f"--methods={','.join(labels)}", f"--overrides={overrides}", "--classes=a,c")
    parent = runs(mlflow_module_store, "tags.kind = 'comparison'")[-1]
    assert parent.info.run_name == "compare-tiny-5-methods"
    record = json.loads(artifact(mlflow_module_store, parent, "parameters.json", tmp_path).read_text())
    assert (record["classes"]["source"], record["seeds"]["source"]) == ("given", "default")
    head, _, base, *_ = (
        artifact(mlflow_module_store, parent, "comparison/table1.md", tmp_path).read_text().split("\n")[2:]
    )
    assert head == "| value | a | c | mean | sd |"
    assert base.startswith("| base H |")
    assert list(pd.read_csv(artifact(mlflow_module_store, parent, "comparison/table1.csv", tmp_path), index_col=0).index) == [
        "a", "c", "mean", "sd",
    ]  # fmt: skip


def test_a_model_that_did_not_move_draws_what_the_base_draws_pixel_for_pixel(
    first, place, mlflow_module_store, tmp_path
):
    compare(place, "--methods=safemax@still", "--overrides=safemax@still.lr=0", "--classes=b", "--gold=false")
    run = children(mlflow_module_store)[-1]
    base, same = (
        Image.open(artifact(mlflow_module_store, run, f"strips/{name}.png", tmp_path)) for name in ("base", "corrected")
    )
    assert base.size == ((5 + 2 * 2) * 8, 8)  # five of the forgotten class, two of each of the two others
    assert base.tobytes() == same.tobytes()


def test_the_same_comparison_runs_nothing_again_and_shows_the_same(
    first, place, mlflow_module_store, monkeypatch, tmp_path
):
    before = children(mlflow_module_store)
    monkeypatch.setattr(runner, "load", None)  # any job would fail
    compare(place, f"--methods=safemax,{SA},salun", f"--overrides={FEW}", "--classes=a,c", "--seeds=2")
    assert len(children(mlflow_module_store)) == len(before)
    again = runs(mlflow_module_store, "tags.kind = 'comparison'")[-1]
    old, new = (
        artifact(mlflow_module_store, each, "comparison/table1.csv", tmp_path / str(i)).read_text()
        for i, each in enumerate((first, again))
        if (tmp_path / str(i)).mkdir() is None
    )
    assert new == old


def test_children_are_found_from_a_run_that_mlflow_opened_in_another_experiment(
    first, place, mlflow_module_store, monkeypatch
):
    elsewhere = mlflow_module_store.create_experiment("elsewhere")
    monkeypatch.setenv("MLFLOW_RUN_ID", mlflow_module_store.create_run(elsewhere).info.run_id)
    monkeypatch.setattr(runner, "load", None)
    compare(place, "--methods=safemax", "--classes=a,c", "--seeds=2", "--gold=false")
    (parent,) = mlflow_module_store.search_runs([elsewhere])
    assert parent.info.status == "FINISHED"
    assert "safemax H" in parent.data.tags["mlflow.note.content"]


def test_another_knob_steps_or_protocol_is_another_child(first, place, mlflow_module_store):
    def count() -> int:
        return len(children(mlflow_module_store))

    before = count()
    shared = ["--classes=a", "--gold=false"]
    compare(place, "--methods=safemax@zero", "--overrides=safemax@zero.target=zero", *shared)
    compare(place, "--methods=safemax", "--steps=3", *shared)
    compare(place, "--methods=safemax", "--retain-samples=7", *shared)
    assert count() == before + 3
    compare(
        place, "--methods=safemax@other", "--overrides=safemax@other.target=zero", *shared
    )  # the first of the three
    assert count() == before + 3


def test_a_stopped_comparison_is_killed_and_resumes_where_it_stopped(first, place, mlflow_module_store):
    often = "finetune.checkpoint_every=5,safemax.checkpoint_every=5"
    command = ["--methods=finetune,safemax", "--classes=b", "--gold=false", "--steps=120", f"--overrides={often}"]
    waiting = len(children(mlflow_module_store))

    def stop_in_the_second_child() -> None:
        folder = Path(".safemax/checkpoints")
        while len(children(mlflow_module_store)) < waiting + 2 or not list(folder.glob("*/*.safetensors")):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop_in_the_second_child, daemon=True).start()
    with pytest.raises(Stopped):
        compare(place, *command)
    parent = runs(mlflow_module_store, "tags.kind = 'comparison'")[-1]
    done, killed = children(mlflow_module_store)[-2:]
    assert [each.info.status for each in (parent, done, killed)] == ["KILLED", "FINISHED", "KILLED"]
    compare(place, *command)
    parent = runs(mlflow_module_store, "tags.kind = 'comparison'")[-1]
    resumed = children(mlflow_module_store)[-1]
    assert len(children(mlflow_module_store)) == waiting + 3
    assert resumed.data.tags["resumed_from"] == killed.info.run_id
    # The killed comparison's finished child is now this one's; cost adds up over both runs: 120 steps of 8 rows.
    now = mlflow_module_store.get_run(done.info.run_id).data.tags["mlflow.parentRunId"]
    assert now == parent.info.run_id
    assert resumed.data.metrics[keys.IMAGES_SEEN] == 120 * 8


def test_a_child_that_fails_leaves_the_others_their_table_and_the_run_failed(first, place, mlflow_module_store):
    with pytest.raises(InputError, match="failed jobs: 1, the first: safemax@wild"):
        compare(
            place, "--methods=safemax,safemax@wild", "--overrides=safemax@wild.lr=10,safemax@wild.clip=1e30",
            "--classes=a", "--gold=false", "--steps=60",
        )  # fmt: skip
    parent = runs(mlflow_module_store, "tags.kind = 'comparison'")[-1]
    assert parent.info.status == "FAILED"
    assert "safemax H" in parent.data.tags["mlflow.note.content"]
    assert children(mlflow_module_store)[-1].info.status == "FAILED"


@pytest.mark.slow
def test_two_workers_one_of_which_is_killed_give_the_numbers_of_one_process(first, place, mlflow_module_store):
    often = "--overrides=salun.checkpoint_every=5"
    command = ["--methods=salun", "--classes=a,c", "--gold=false", "--steps=100", often]
    before = len(children(mlflow_module_store))

    def kill_one_that_has_a_checkpoint() -> None:
        while not list(Path(".safemax/checkpoints").glob("*/*.safetensors")):
            time.sleep(0.02)
        ray_clusters.workers()[0].kill()

    def numbers() -> dict[str, float]:
        made = [each for each in children(mlflow_module_store)[before:] if each.info.status == "FINISHED"]
        return {each.info.run_name: each.data.metrics[keys.FID_JUDGE] for each in made}

    threading.Thread(target=kill_one_that_has_a_checkpoint, daemon=True).start()
    compare(place, *command, "--workers=2")
    made = children(mlflow_module_store)[before:]
    assert [each.info.status for each in made] == ["FINISHED", "FINISHED"]
    assert sum("comparison.deaths" in each.data.tags for each in made) == 1
    together = numbers()
    for each in children(mlflow_module_store)[before:]:
        mlflow_module_store.delete_run(each.info.run_id)
    compare(place, *command)
    assert len(together) == 2
    assert numbers() == together


@pytest.mark.slow
def test_all_of_24_children_finish_once_although_one_of_two_machines_dies(place, mlflow_module_store):
    compare_module.tracking.setup(EXPERIMENT)
    pytest.importorskip("ray", reason="needs Ray: pip install 'safemax[ray]'")
    labels = [f"finetune@{i}" for i in range(8)]
    overrides = ",".join(f"{each}.lr={i + 1}e-5" for i, each in enumerate(labels))
    before = len(children(mlflow_module_store))

    def kill_a_machine() -> None:
        while sum(each.info.status == "FINISHED" for each in children(mlflow_module_store)[before:]) < 4:
            time.sleep(0.2)
        cluster.remove_node(second, allow_graceful=False)

    with ray_clusters.two_machines(6) as (cluster, second):
        threading.Thread(target=kill_a_machine, daemon=True).start()
        compare(
            place, f"--methods={','.join(labels)}", f"--overrides={overrides}", "--classes=all", "--gold=false",
            "--steps=20", "--workers=12", "--cluster=auto",
        )  # fmt: skip
        assert psutil.wait_procs(ray_clusters.workers(), 10)[1] == []
    made = children(mlflow_module_store)[before:]
    assert len({each.data.tags["comparison.digest"] for each in made}) == len(made) == 24
    assert {each.info.status for each in made} == {"FINISHED"}
    assert any("comparison.deaths" in each.data.tags for each in made)


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("--classes=d", "unknown class 'd'"),
        ("--methods=nothing", "unknown method 'nothing'"),
        ("--overrides=safemax.x=1", "unknown knob of safemax 'x'"),
        ("--model=/nowhere", "/nowhere is not a folder"),
        ("--output=/proc/nowhere", "output = /proc/nowhere cannot be written to"),
    ],
)
def test_bad_input_is_refused_before_any_run(place, mlflow_module_store, word, line):
    compare_module.tracking.setup(EXPERIMENT)
    before = len(runs(mlflow_module_store, ""))
    given = {"--data": f"--data={place}/tiny", "--model": f"--model={place}/base", "--name": f"--name={EXPERIMENT}"}
    given |= {"--methods": "--methods=safemax", word.partition("=")[0]: word}
    with pytest.raises(InputError, match=line):
        compare_module.compare(list(given.values()))
    assert len(runs(mlflow_module_store, "")) == before


def test_a_method_that_does_not_fit_the_model_is_refused_before_any_run(place, mlflow_module_store):
    tiny_models.diffusion(null=False).save(place / "without-null")
    compare_module.tracking.setup(EXPERIMENT)
    before = len(runs(mlflow_module_store, ""))
    with pytest.raises(InputError, match="null label"):
        compare_module.compare(
            [
                f"--data={place}/tiny",
                f"--model={place}/without-null",
                f"--name={EXPERIMENT}",
                "--methods=expected_targets",
            ]
        )
    assert len(runs(mlflow_module_store, "")) == before
