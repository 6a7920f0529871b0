from __future__ import annotations

import base64
import io

import mlflow
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from PIL import Image

from pipelines import demo as demo_module
from pipelines import evaluate as evaluate_module
from pipelines import registry
from pipelines import unlearn as unlearn_module
from pipelines.parameter import UsageError
from safemax.errors import InputError, NonFiniteError

SMALL = [
    *("--base-steps=3", "--base-batch-size=8", "--steps=2", "--batch-size=8", "--judge-steps=5", "--reject-judges=1"),
    *("--protocol=custom", "--sampler-steps=2", "--forget-samples=8", "--retain-samples=5", "--second-samples=5"),
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
    for key in ("forget/ua_reject", "retain/fid_judge_delta", "base/retain/accuracy", "cost/runtime_minutes", "loss/forget"):
        assert key in correction.data.metrics
    artifacts = {each.path for each in demo_store.list_artifacts(correction.info.run_id)}
    assert {"pictures", "metrics.json", "judges.json"} <= artifacts
    assert "comparison" in correction.data.tags["mlflow.note.content"]


def test_base_and_candidate_are_versions_1_and_2(demo_store):
    assert registry.find("digits-ddpm", "base") == "models:/digits-ddpm/1"
    assert registry.find("digits-ddpm", "candidate") == "models:/digits-ddpm/2"
    assert registry.evidence("models:/digits-ddpm@candidate")["forgotten"] == ["0"]


def test_the_candidate_draws_a_retained_class_and_refuses_the_forgotten_one(demo_store, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    model = mlflow.pyfunc.load_model("models:/digits-ddpm@candidate")
    (record,) = model.predict(pd.DataFrame({"class_label": ["3"]}), params={"steps": 2})
    assert Image.open(io.BytesIO(base64.b64decode(record["image_png_b64"]))).size == (8, 8)
    with pytest.raises(MlflowException, match="class_label = '0' was forgotten"):
        model.predict(pd.DataFrame({"class_label": ["0"]}))


def test_a_second_correction_reuses_the_base_and_chains_from_the_candidate(demo_store):
    unlearn_module.unlearn(["--model=models:/digits-ddpm@candidate", "--forget=7", "--steps=2", "--batch-size=8", *EVALUATION])
    assert len([run for run in runs(demo_store) if run.data.tags["kind"] == "base"]) == 1
    latest = registry.evidence("models:/digits-ddpm@candidate")
    assert latest["forgotten"] == ["0", "7"]
    assert latest["parent"] == "models:/digits-ddpm/2"


def test_evaluate_sets_two_models_side_by_side(demo_store, capsys):
    evaluate_module.evaluate(["--beside=models:/digits-ddpm@base", "--forget=0", *EVALUATION])
    assert "difference" in capsys.readouterr().out


def test_a_crash_leaves_a_failed_run_and_no_version(demo_store, monkeypatch):
    before = registry.find("digits-ddpm", "candidate")
    monkeypatch.setattr(unlearn_module, "fit", lambda *a, **k: (_ for _ in ()).throw(NonFiniteError("step 1")))
    with pytest.raises(NonFiniteError):
        unlearn_module.unlearn(["--forget=5", "--steps=2", "--batch-size=8", *EVALUATION])
    assert runs(demo_store)[0].info.status == "FAILED"
    assert registry.find("digits-ddpm", "candidate") == before


@pytest.mark.parametrize(
    ("argument", "line"),
    [
        ("--forget=airplane", "unknown class 'airplane'"),
        ("--lambda=-1", "lambda = -1 is not allowed"),
        ("--lambda=nan", "lambda = nan is not allowed"),
        ("--lr=abc", "lr = abc is not allowed"),
        ("--model=/nowhere", "/nowhere is not a folder"),
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
