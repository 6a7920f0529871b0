"""From a correction to attacks on it and the page that shows both, through the pipelines, at the smallest size."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from pipelines import attack as attack_module
from pipelines import demo as demo_module
from pipelines import evaluate as evaluate_module
from pipelines import tracking
from pipelines import unlearn as unlearn_module
from pipelines.cli.parameters import UsageError
from pipelines.correction.retrained import GoldOptions, _as_base
from pipelines.registry import attachments, lineage, model_versions
from safemax import attacks
from safemax import metric_keys as keys
from safemax.data.sources import load
from safemax.diffusion.model import Diffusion
from safemax.errors import InputError, Stopped

JUDGES = ["--judge-steps=5", "--reject-judges=1"]
MEASURE = [
    *("--protocol=custom", "--sampler-steps=2", "--forget-samples=8", "--retain-samples=5", "--second-samples=5"),
    "--user-samples=0",
    *JUDGES,
]
CORRECT = ["--steps=2", "--batch-size=8", *MEASURE]
ATTACK = [
    "--attack-samples=10",
    "--relearn-steps=8",
    "--relearn-batch-size=4",
    "--invert-steps=2",
    "--dimra-steps=8",
    *JUDGES,
]
CANDIDATE = "models:/digits-ddpm/2"


@pytest.fixture(scope="module")
def corrected(mlflow_module_store):
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("SAFEMAX_CACHE", raising=False)
        demo_module.demo(["--base-steps=3", "--base-batch-size=8", *CORRECT])
        yield mlflow_module_store


@pytest.fixture(scope="module")
def attacked(corrected):
    attack_module.attack([f"--model={CANDIDATE}", "--gold-steps=2", "--attacks=invert,weights", *ATTACK])
    return corrected


def newest(store, kind):
    experiment = store.get_experiment_by_name("digits-ddpm").experiment_id
    return store.search_runs(
        [experiment],
        f"tags.kind = '{kind}' and attributes.status = 'FINISHED'",
        order_by=["attributes.start_time DESC"],
    )[0]


@pytest.mark.slow
def test_all_attacks_report_their_success_on_the_model_the_base_and_gold(corrected):
    attack_module.attack([f"--model={CANDIDATE}", "--gold-steps=2", *ATTACK])
    run = newest(corrected, "attack")
    assert run.data.tags["version"] == CANDIDATE
    for name in attacks.available():
        rates = [run.data.metrics[f"attack/{name}_{end}"] for end in ("asr", "asr_base", "asr_gold", "delta_gold")]
        assert rates[3] == pytest.approx(rates[0] - rates[2])
        assert run.data.metrics[f"attack/{name}_seconds"] > 0
    assert run.data.metrics[keys.WORST_DELTA] >= run.data.metrics["attack/relearn_delta_gold"]


def test_pictures_tables_and_a_note_go_to_the_run_and_the_numbers_to_the_version(attacked):
    run = newest(attacked, "attack")
    pictures = {each.path for each in attacked.list_artifacts(run.info.run_id, "pictures/attack")}
    assert "pictures/attack/invert.png" in pictures
    assert {"attacks.json", "seconds.json"} <= {each.path for each in attacked.list_artifacts(run.info.run_id)}
    assert "weights_merge" in run.data.tags["mlflow.note.content"]
    attached = json.loads(attachments.attached(CANDIDATE, "attacks"))
    assert attached["metrics"][keys.WORST_DELTA] == pytest.approx(run.data.metrics[keys.WORST_DELTA])
    assert (attached["about"]["forget"], attached["about"]["gold"]) == (["0"], "train")
    assert "invert_steps" in attached["about"]["changed"]  # the tests' attacks are short


def test_the_gold_model_is_trained_once_and_what_was_attacked_before_is_not_attacked_again(attacked, capsys):
    golds = list(Path(".safemax/gold").iterdir())
    modified = {path: path.stat().st_mtime_ns for path in Path(".safemax/attacks").iterdir()}
    assert len(golds) == 1
    assert len(modified) >= 6  # two attacks on three models
    attack_module.attack([f"--model={CANDIDATE}", "--gold-steps=2", "--attacks=invert,weights", *ATTACK])
    assert {path: path.stat().st_mtime_ns for path in Path(".safemax/attacks").iterdir()} == modified
    assert "beyond gold" in capsys.readouterr().out


def test_the_gold_model_is_trained_as_the_base_was(corrected):
    training, null_drop, gamma = _as_base("models:/digits-ddpm/1")
    assert (training.steps, training.batch_size, training.lr, training.ema, null_drop) == (3, 8, 1e-3, 0.99, 0.1)
    assert (training.minutes, training.ema_warmup, gamma) == (0.0, False, 0.0)


def test_a_stopped_gold_training_leaves_no_gold_model(corrected):
    template = Diffusion.load(model_versions.resolve("models:/digits-ddpm/1"))
    with pytest.raises(Stopped):
        GoldOptions(gold_steps=7).find(template, "models:/digits-ddpm/1", load("digits"), (0,), lambda: True)
    assert (
        GoldOptions(gold="kept", gold_steps=7).find(
            template, "models:/digits-ddpm/1", load("digits"), (0,), lambda: True
        )
        is None
    )


def test_without_gold_success_is_reported_and_no_difference(attacked):
    attack_module.attack([f"--model={CANDIDATE}", "--gold=none", "--base=none", "--attacks=invert", *ATTACK])
    metrics = newest(attacked, "attack").data.metrics
    assert metrics.keys() == {"attack/invert_asr", "attack/invert_seconds", keys.WORST_ASR}


def test_the_page_shows_panel_attacks_and_lineage_and_is_evidence_of_the_version(attacked):
    run_id = newest(attacked, "attack").info.run_id
    evaluate_module.evaluate([f"--model={CANDIDATE}", "--gold-steps=2", f"--attack-run={run_id}", *MEASURE])
    run = newest(attacked, "evaluation")
    assert run.data.params["model.beside"] == "models:/digits-ddpm/1"
    assert run.data.params["data.forget"] == "0"
    assert run.data.tags["mlflow.note.content"].startswith(
        f"**{run.data.tags['verdict'].replace('_', ' ').capitalize()}: "
    )
    assert {keys.GOLD_KID_RETAIN, keys.ACCURACY + keys.DELTA} <= run.data.metrics.keys()
    table = tracking.stored_table(run.info.run_id, "metrics").set_index("metric")
    assert table.loc["retain_class/fid_7", ["base", "corrected", "difference"]].notna().all()
    page = attachments.attached(CANDIDATE, "report").decode()
    assert Path(attacked.download_artifacts(run.info.run_id, "evidence/report.html")).read_text() == page
    for words in (CANDIDATE, "models:/digits-ddpm/1", keys.RUNTIME_MINUTES, "invert", run_id, "method.lambda"):
        assert words in page
    assert not re.search(r"src=.(?!data:)|<link|@import|url\(", page)  # it loads nothing
    assert f"/runs/{run_id}?" in page
    description = model_versions.version_of(CANDIDATE).description
    assert description.startswith("**Examined on ")
    assert f"/runs/{run.info.run_id}/artifacts/evidence/report.html?" in description
    assert description.count("As it was registered:") == 1


def test_a_version_without_an_attack_run_is_measured_and_the_page_says_so(corrected):
    evaluate_module.evaluate(["--model=models:/digits-ddpm/1", "--forget=7", "--attack-run=none", *MEASURE])
    page = attachments.attached("models:/digits-ddpm/1", "report").decode()
    assert "No attack was run" in page
    assert "No base was measured" in page


def test_a_chain_is_compared_with_the_model_that_had_forgotten_nothing(corrected):
    unlearn_module.unlearn([f"--model={CANDIDATE}", "--forget=7", *CORRECT])
    latest = model_versions.find("digits-ddpm", "candidate")
    assert model_versions.version_of(latest).tags["parent"] == CANDIDATE
    assert lineage.origin(latest, "auto") == "models:/digits-ddpm/1"
    assert lineage.classes_of(latest, "auto", load("digits")) == (0, 7)


@pytest.mark.parametrize(
    ("pipeline", "arguments", "line"),
    [
        (attack_module.attack, ["--model=models:/digits-ddpm/1"], "does not state what it has forgotten"),
        (attack_module.attack, ["--model=/nowhere", "--forget=0"], "/nowhere is not a folder"),
        (attack_module.attack, ["--attacks=invert,relaern"], "unknown attack 'relaern'"),
        (attack_module.attack, ["--attack-samples=1"], "attack_samples = 1 is not allowed"),
        (evaluate_module.evaluate, ["--model=models:/digits-ddpm@nobody"], "unknown version of digits-ddpm"),
    ],
)
def test_bad_input_is_one_line(corrected, pipeline, arguments, line):
    with pytest.raises((InputError, UsageError), match=line) as caught:
        pipeline(arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("pipeline", [attack_module.attack, evaluate_module.evaluate])
def test_a_version_is_not_examined_with_data_that_it_was_not_trained_on(corrected, tmp_path, pipeline):
    for split in ("train", "test"):
        for name in ("0", "1"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("L", (8, 8), 9 + int(name)).save(tmp_path / split / name / "a.png")
    with pytest.raises(InputError, match=f"is not what {CANDIDATE} was trained on: digest"):
        pipeline([f"--model={CANDIDATE}", f"--data={tmp_path}"])


def test_attacks_on_another_version_are_refused(attacked):
    run_id = newest(attacked, "attack").info.run_id
    with pytest.raises(InputError, match=f"attack_run = {run_id} attacked {CANDIDATE}, not models:/digits-ddpm/1"):
        evaluate_module.evaluate(["--model=models:/digits-ddpm/1", "--forget=0", f"--attack-run={run_id}", *MEASURE])


@pytest.mark.parametrize("pipeline", [attack_module.attack, evaluate_module.evaluate])
@pytest.mark.parametrize(
    "several", [f"{CANDIDATE},{CANDIDATE}", f"{CANDIDATE},", "models:/digits-ddpm/1,models:/digits-ddpm@base"]
)
def test_a_model_named_twice_or_not_at_all_is_refused(corrected, pipeline, several):
    with pytest.raises(InputError, match="it names each model once, separated by commas"):
        pipeline([f"--model={several}"])


def newest_first(store, kind):
    experiment = store.get_experiment_by_name("digits-ddpm").experiment_id
    return store.search_runs([experiment], f"tags.kind = '{kind}'", order_by=["attributes.start_time DESC"])


def test_several_models_get_a_run_each_and_those_that_fail_are_named(corrected, monkeypatch):
    measure = evaluate_module.Evaluator.measure

    def refuse(self, address, diffusion):
        if self.subject.address == CANDIDATE:
            raise InputError("the candidate is not measured today")
        return measure(self, address, diffusion)

    monkeypatch.setattr(evaluate_module.Evaluator, "measure", refuse)
    both = f"--model={CANDIDATE},models:/digits-ddpm/1"
    with pytest.raises(InputError, match=f"failed models: 1 of 2, the first: {CANDIDATE}: the candidate is not"):
        evaluate_module.evaluate([both, "--forget=0", "--attack-run=none", *MEASURE])
    other, candidate = newest_first(corrected, "evaluation")[:2]
    assert (candidate.data.tags["version"], candidate.info.status) == (CANDIDATE, "FAILED")
    assert (other.data.tags["version"], other.info.status) == ("models:/digits-ddpm/1", "FINISHED")


def numbers(run):
    """Return what a run measured, but for the time that it took."""
    return {k: v for k, v in run.data.metrics.items() if not k.endswith(("minutes", "seconds", "seconds_base"))}


@pytest.mark.slow
def test_workers_give_several_models_the_numbers_of_one_after_the_other(corrected):
    pytest.importorskip("ray", reason="needs Ray: pip install 'safemax[ray]'")
    both = f"--model={CANDIDATE},models:/digits-ddpm/1"
    measured = [both, "--forget=0", "--attack-run=none", "--gold=train", "--gold-steps=3", *MEASURE]
    attacked = [both, "--forget=0", "--gold-steps=3", "--attacks=invert,weights", *ATTACK, "--attack-seed=7"]
    found = []
    for more in (["--workers=2"], []):
        for kind in ("samples", "attacks", "gold"):
            shutil.rmtree(f".safemax/{kind}", ignore_errors=True)
        evaluate_module.evaluate([*measured, *more])
        attack_module.attack([*attacked, *more])
        attacks_made = sorted(Path(".safemax/attacks").iterdir())
        runs = [*newest_first(corrected, "evaluation")[:2], *newest_first(corrected, "attack")[:2]]
        assert {each.info.status for each in runs} == {"FINISHED"}
        found.append(([numbers(each) for each in runs], [each.data.tags["version"] for each in runs], attacks_made))
    assert found[0] == found[1]
    assert found[0][1] == ["models:/digits-ddpm/1", CANDIDATE] * 2
