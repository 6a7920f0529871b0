"""The demo, a chained correction, an evaluation and a comparison in one small store, and what each of them leaves there."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import threading
import time
import warnings
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from PIL import Image

from pipelines import compare as compare_module
from pipelines import demo as demo_module
from pipelines import evaluate as evaluate_module
from pipelines import tracking
from pipelines import unlearn as unlearn_module
from pipelines.cli.parameters import UsageError
from pipelines.correction import correction as correction_module
from pipelines.registry import model_versions, references
from safemax import metric_keys as keys
from safemax.diffusion.model import Diffusion
from safemax.errors import InputError, NonFiniteError, Note, Stopped
from safemax.evaluation.verdict import OUTCOMES

SMALL = [
    *("--base-steps=3", "--base-batch-size=8", "--steps=2", "--batch-size=8", "--judge-steps=5", "--reject-judges=1"),
    *("--protocol=custom", "--sampler-steps=2", "--forget-samples=8", "--retain-samples=5", "--second-samples=5"),
    "--user-samples=1",
]
EVALUATION = SMALL[4:]


@pytest.fixture(scope="module")
def demo_store(mlflow_module_store):
    demo_module.demo(SMALL)
    return mlflow_module_store


def runs(store, name="digits-ddpm"):
    return store.search_runs([store.get_experiment_by_name(name).experiment_id])


def test_the_demo_leaves_a_finished_run_with_metrics_pictures_and_a_version(demo_store):
    correction = next(run for run in runs(demo_store) if run.data.tags["kind"] == "correction")
    assert correction.info.status == "FINISHED"
    assert correction.data.params["method.lambda"] == "1.0"
    for key in (
        keys.UA_REJECT,
        keys.FID_JUDGE + keys.DELTA,
        keys.RUNTIME_MINUTES,
        "loss/forget",
    ):
        assert key in correction.data.metrics
    artifacts = {each.path for each in demo_store.list_artifacts(correction.info.run_id)}
    assert {"pictures", "metrics.json", "judges.json", "environment.json"} <= artifacts
    assert "comparison" in correction.data.tags["mlflow.note.content"]


def test_the_demo_says_where_its_base_was_trained_otherwise_than_asked(demo_store):
    with pytest.warns(
        Note, match="digits-ddpm/1 is corrected as it is: it was trained for 3 steps of 8 rows, not for 4 of 8"
    ):
        demo_module.demo(["--base-steps=4", *SMALL[1:], "--plan=true"])
    with warnings.catch_warnings():
        warnings.simplefilter("error", Note)
        demo_module.demo([*SMALL, "--plan=true"])


def test_a_base_that_was_trained_by_minutes_is_not_said_to_have_taken_its_steps():
    by_minutes = {"train.steps": 800, "train.minutes": 20.0, "train.batch_size": 128}
    assert demo_module._extent(by_minutes) == "20.0 min in steps of 128 rows"
    assert demo_module._extent({**by_minutes, "train.minutes": 0.0}) == "800 steps of 128 rows"


def test_the_logged_model_has_final_metrics_once_with_their_data_and_can_be_searched_by_them(demo_store):
    correction = next(run for run in runs(demo_store) if run.data.tags["kind"] == "correction")
    experiments = [correction.info.experiment_id]
    ua = correction.data.metrics[keys.UA]
    for text, count in ((f">= {ua}", 1), (f"> {ua + 0.1}", 0)):
        found = mlflow.search_logged_models(experiments, f"metrics.`{keys.UA}` {text}", output_format="list")
        assert len(found) == count
    (model,) = mlflow.search_logged_models(experiments, f"metrics.`{keys.UA}` >= 0", output_format="list")
    assert model.source_run_id == correction.info.run_id
    assert model.params["method.lambda"] == "1.0"
    logged = [each.key for each in model.metrics]
    assert sorted(logged) == sorted(set(logged))  # none twice
    assert not [key for key in logged if key.startswith(("loss/", "base/")) or key.endswith(keys.UNCERTAINTY)]
    assert {each.dataset_name for each in model.metrics} == {"digits"}
    assert {each.dataset_digest for each in model.metrics} == {correction.inputs.dataset_inputs[0].dataset.digest}
    for each in model.metrics:
        assert each.value == correction.data.metrics[each.key]


def test_a_run_charts_its_last_losses_and_no_intervals_or_numbers_of_the_base(demo_store):
    correction = next(run for run in runs(demo_store) if run.data.tags["kind"] == "correction")
    steps = [each.step for each in demo_store.get_metric_history(correction.info.run_id, "loss/forget")]
    assert steps == sorted(set(steps))
    assert not [key for key in correction.data.metrics if key.startswith("base/") or key.endswith(keys.UNCERTAINTY)]
    assert len(correction.data.params) <= 12
    table = tracking.stored_table(correction.info.run_id, "metrics").set_index("metric")
    assert table.loc[keys.ACCURACY, ["base", "corrected", "difference"]].notna().all()
    assert keys.UA + keys.LOW in table.index


def test_the_pictures_by_step_begin_with_step_0(demo_store):
    correction = next(run for run in runs(demo_store) if run.data.tags["kind"] == "correction")
    paths = [each.path for each in demo_store.list_artifacts(correction.info.run_id, "images")]
    steps = {int(each.split("+")[2]) for each in paths if "samples~by_step" in each}
    assert {0, 2} <= steps


def test_a_run_records_which_parameters_were_given_and_what_the_others_were(demo_store, tmp_path):
    correction = next(run for run in runs(demo_store) if run.data.tags["kind"] == "correction")
    path = demo_store.download_artifacts(correction.info.run_id, "parameters.json", str(tmp_path))
    record = json.loads(Path(path).read_text())
    assert [name for name, each in record.items() if each["source"] == "given"] == [
        *("base_steps", "base_batch_size", "steps", "batch_size", "protocol", "forget_samples", "retain_samples"),
        *("second_samples", "user_samples", "sampler_steps", "judge_steps", "reject_judges"),
    ]
    assert record["steps"] == {"value": 2, "source": "given"}
    assert record["lambda"] == {"value": 1.0, "source": "default"}


def test_base_and_candidate_are_versions_1_and_2(demo_store):
    assert model_versions.find("digits-ddpm", "base") == "models:/digits-ddpm/1"
    assert model_versions.find("digits-ddpm", "candidate") == "models:/digits-ddpm/2"
    assert model_versions.evidence("models:/digits-ddpm@candidate")["forgotten"] == ["0"]


def test_the_candidate_draws_a_retained_class_and_refuses_the_forgotten_one(demo_store, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    model = mlflow.pyfunc.load_model("models:/digits-ddpm@candidate")
    (record,) = model.predict(pd.DataFrame({"class_label": ["3"]}), params={"steps": 2})
    assert Image.open(io.BytesIO(base64.b64decode(record["image_png_b64"]))).size == (8, 8)
    with pytest.raises(MlflowException, match="class_label = '0' was forgotten"):
        model.predict(pd.DataFrame({"class_label": ["0"]}))


def test_a_second_correction_reuses_the_base_and_chains_from_the_candidate(demo_store):
    unlearn_module.unlearn(
        ["--model=models:/digits-ddpm@candidate", "--forget=7", "--steps=2", "--batch-size=8", *EVALUATION]
    )
    assert len([run for run in runs(demo_store) if run.data.tags["kind"] == "base"]) == 1
    latest = model_versions.evidence("models:/digits-ddpm@candidate")
    assert latest["forgotten"] == ["0", "7"]
    assert latest["parent"] == "models:/digits-ddpm/2"
    assert latest["earlier"].keys() == {"0"}
    assert 0 <= latest["earlier"]["0"]["recognised"] <= latest["earlier"]["0"]["recognised_high"] <= 100
    assert latest["root_metrics"].keys() == latest["base_metrics"].keys()
    assert {"retain_class/accuracy_1", keys.RECOGNISED} <= latest["metrics"].keys()
    assert not {"retain_class/accuracy_0", "retain_class/accuracy_7"} & latest["metrics"].keys()


def test_a_class_that_is_corrected_again_is_held_to_the_first_base(demo_store):
    unlearn_module.unlearn(["--model=models:/digits-ddpm/2", "--forget=0", "--steps=2", "--batch-size=8", *EVALUATION])
    latest = model_versions.evidence("models:/digits-ddpm@candidate")
    first = model_versions.evidence("models:/digits-ddpm/2")
    assert latest["base_metrics"][keys.FID_JUDGE] == first["metrics"][keys.FID_JUDGE]
    assert latest["root_metrics"][keys.FID_JUDGE] == first["base_metrics"][keys.FID_JUDGE]
    assert references.base_of(latest).metrics == latest["root_metrics"]


def test_a_model_whose_labels_have_other_names_than_the_data_is_refused(demo_store, tmp_path):
    base = Diffusion.load(model_versions.resolve("models:/digits-ddpm/1"))
    other = Diffusion(base.denoiser, base.schedule, tuple("abcdefghij"))
    other.save(tmp_path / "other")
    before = model_versions.find("digits-ddpm", "candidate")
    with pytest.raises(InputError, match="label 0 is 'a' in the model and '0' in data = digits"):
        unlearn_module.unlearn([f"--model={tmp_path}/other", "--forget=0", "--steps=2", "--batch-size=8", *EVALUATION])
    assert model_versions.find("digits-ddpm", "candidate") == before


def test_a_chained_correction_trains_on_nothing_that_was_forgotten_earlier(demo_store, monkeypatch):
    seen = []

    def fit(trainer):
        seen.append(sorted(trainer.split.labels.unique().tolist()))
        raise Stopped

    monkeypatch.setattr(correction_module.Trainer, "fit", fit)
    for model in ("models:/digits-ddpm/1", "models:/digits-ddpm/2"):
        with pytest.raises(Stopped):
            unlearn_module.unlearn([f"--model={model}", "--forget=8", "--steps=2", "--batch-size=8", *EVALUATION])
    assert seen == [list(range(10)), list(range(1, 10))]  # version 2 has forgotten 0


def test_the_evidence_says_what_a_repetition_needs(demo_store):
    evidence = model_versions.evidence("models:/digits-ddpm/2")
    parameters = evidence["parameters"]
    assert parameters["train.seed"] == parameters["eval.seed"] == evidence["judging"]["judge_seed"] == 0
    assert parameters["method.lambda"] == 1.0
    assert evidence["parent_digest"] == model_versions.evidence("models:/digits-ddpm/1")["model_digest"]
    assert evidence["data_digest"] == model_versions.evidence("models:/digits-ddpm/1")["data_digest"]
    assert {"commit", "dirty", "command", "threads", "python", "torch", "diffusers"} <= evidence["environment"].keys()
    tags = model_versions.version_of("models:/digits-ddpm/2").tags
    assert tags["git.commit"] == evidence["environment"]["commit"]
    assert tags["verdict"] in OUTCOMES


def test_a_version_is_described_by_its_verdict_then_where_it_comes_from_then_pictures(demo_store):
    (number,) = demo_store.search_model_versions("name='digits-ddpm' and version_number=2")
    text = number.description
    assert text.startswith(f"**{number.tags['verdict'].replace('_', ' ').capitalize()}: ")
    assert "`safemax` on digits, forget 0. UA " in text
    assert "pictures/comparison.png" in text
    assert (
        "Corrected from [digits-ddpm version 1](#/models/digits-ddpm/versions/1?workflowType=machine_learning)" in text
    )
    assert f"#/experiments/1/runs/{number.run_id}?workflowType=machine_learning" in text
    assert "Registered as [digits-ddpm version 2]" in demo_store.get_run(number.run_id).data.tags["mlflow.note.content"]


def test_the_error_of_a_priors_estimate_is_on_the_run(demo_store):
    # A Fisher information estimated from 4 images has an error above 0, and no more than the spread of single images.
    unlearn_module.unlearn(
        ["--method=selective_amnesia", "--forget=2", "--steps=2", "--batch-size=8", "--previews=0"]
        + ["--replay-images=2", "--replay-steps=2", "--fisher-images=4", "--fisher-times=2", *EVALUATION]
    )
    assert 0 < runs(demo_store)[0].data.metrics["prior/fisher_error"] < 5


def test_evaluate_sets_two_models_side_by_side(demo_store, capsys):
    evaluate_module.evaluate(["--beside=models:/digits-ddpm@base", "--forget=0", *EVALUATION])
    assert "change" in capsys.readouterr().out


def test_an_evaluation_counts_no_class_that_was_forgotten_too_as_retained(demo_store):
    evaluate_module.evaluate(["--model=models:/digits-ddpm/3", "--forget=7", "--beside=none", *EVALUATION])
    metrics = tracking.stored_table(runs(demo_store)[0].info.run_id, "metrics")["metric"].tolist()
    assert {"retain_class/accuracy_1", keys.RECOGNISED} <= set(metrics)
    assert "retain_class/accuracy_0" not in metrics


def test_a_comparison_starts_from_a_model_that_has_forgotten_nothing(demo_store):
    before = len(runs(demo_store))
    with pytest.raises(InputError, match="models:/digits-ddpm/2 has forgotten 0; a comparison starts from a base"):
        compare_module.compare(["--model=models:/digits-ddpm/2", "--methods=safemax", "--classes=7"])
    assert len(runs(demo_store)) == before


def test_a_crash_leaves_a_failed_run_and_no_version(demo_store, monkeypatch):
    before = model_versions.find("digits-ddpm", "candidate")
    monkeypatch.setattr(
        correction_module.Trainer, "fit", lambda *a, **k: (_ for _ in ()).throw(NonFiniteError("step 1"))
    )
    with pytest.raises(NonFiniteError):
        unlearn_module.unlearn(["--forget=5", "--steps=2", "--batch-size=8", *EVALUATION])
    assert runs(demo_store)[0].info.status == "FAILED"
    assert model_versions.find("digits-ddpm", "candidate") == before


@pytest.mark.parametrize(
    ("argument", "line"),
    [
        ("--forget=airplane", "unknown class 'airplane'"),
        ("--lambda=-1", "lambda = -1 is not allowed"),
        ("--lambda=nan", "lambda = nan is not allowed"),
        ("--lr=abc", "lr = abc is not allowed"),
        ("--model=/nowhere", "/nowhere is not a folder"),
        ("--name=a/b", "name = 'a/b' is not allowed"),
        ("--preset=nonsense", "unknown preset of safemax 'nonsense'"),
        ("--sampler-steps=4 --protocol=fast", "protocol = fast fixes sampler_steps"),
    ],
)
def test_bad_input_is_one_line_before_any_training(demo_store, argument, line):
    with pytest.raises((InputError, UsageError), match=line) as caught:
        unlearn_module.unlearn(argument.split())
    assert "\n" not in str(caught.value)


def test_an_absent_base_names_the_command_that_makes_one(mlflow_store):
    with pytest.raises(InputError, match="mlflow run . -e pretrain -P data=digits"):
        unlearn_module.unlearn(["--forget=0"])


def test_a_stopped_run_is_killed_and_the_same_command_resumes_it(demo_store, tmp_path):
    command = ["--forget=4", "--steps=400", "--batch-size=8", "--checkpoint-every=5", "--previews=0", *EVALUATION]
    folders = Path(".safemax/checkpoints")

    def stop_when_a_checkpoint_lies() -> None:
        while not list(folders.glob("*/*.safetensors")):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop_when_a_checkpoint_lies, daemon=True).start()
    with pytest.raises(Stopped):
        unlearn_module.unlearn(command)
    stopped = runs(demo_store)[0]
    assert stopped.info.status == "KILLED"
    unlearn_module.unlearn(command)
    resumed = runs(demo_store)[0]
    assert resumed.data.tags["resumed_from"] == stopped.info.run_id
    assert resumed.data.metrics[keys.IMAGES_SEEN] == 400 * 8
    assert not list(folders.glob("*/*.safetensors"))


@pytest.mark.slow
def test_cifar10_runs_the_whole_path_on_a_cpu(mlflow_store, monkeypatch, tmp_path):
    data = os.environ.get("SAFEMAX_DATA")
    if data is None:
        pytest.skip("SAFEMAX_DATA names no folder with cifar10 and judges")
    monkeypatch.setenv("SAFEMAX_CACHE", str(tmp_path / "cache"))
    # 11 forget and 9 retained images: 20 of 4 sampler steps
    demo_module.demo(
        ["--data=cifar10", "--forget=airplane", "--base-steps=3", "--base-batch-size=4", "--steps=3", "--batch-size=4"]
        + ["--protocol=custom", "--sampler-steps=4", "--guidance-scale=1", "--forget-samples=11", "--retain-samples=1"]
        + ["--second-samples=1", f"--judge={data}/judges/cifar10-resnet20.safetensors", "--judge-steps=2"]
        + ["--reject-judges=1", "--previews=0"]
    )
    assert model_versions.evidence("models:/cifar10-ddpm@candidate")["forgotten"] == ["airplane"]
