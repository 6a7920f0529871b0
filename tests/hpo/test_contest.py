"""A whole contest at the smallest size: what it finishes, keeps, joins and says."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from hpo.contest import jobs, tune
from hpo.contest import run as contest_run
from hpo.contest.config import Contest, ContestOptions, Correction
from hpo.contest.files import ResultFiles, code_of
from hpo.contest.planning import plan_of
from hpo.contest.work import RowCounter, Workshop
from pipelines.cli.options import DataOptions
from pipelines.correction.base_model import NetworkOptions
from safemax.errors import InputError, Note
from safemax.evaluation.protocol import Evaluation
from safemax.judges.config import JudgeConfig
from safemax.reports import contest_tables
from tests.support import ray_clusters, tiny_models

SMALL = [
    "--protocol=custom", "--sampler-steps=2", "--forget-samples=6", "--retain-samples=6", "--second-samples=5",
    "--user-samples=0", "--judge-steps=5", "--reject-judges=1", "--base-steps=2", "--classes=a", "--tune-classes=b",
]  # fmt: skip
EVALUATION = Evaluation(
    protocol="custom", sampler_steps=2, forget_samples=6, retain_samples=6, second_samples=5, user_samples=0
)


@pytest.fixture
def contest(shared_folder: Path, hpo_cache: Path) -> Callable[..., Contest]:
    def build(**options: object) -> Contest:
        given = replace(ContestOptions(classes="a", tune_classes="b", base_steps=2, rows=600), **options)  # type: ignore[arg-type]
        data = DataOptions(data=str(shared_folder / "data"))
        judging = JudgeConfig(judge_steps=5, reject_judges=1)
        return Contest.of(given, data, NetworkOptions(), EVALUATION, judging, data.load(quiet=True))

    return build


@pytest.mark.parametrize(
    "other",
    [
        {"network": NetworkOptions(architecture="dit")},
        {"network": NetworkOptions(null_drop=0.2)},
        {"judging": JudgeConfig(judge_steps=6, reject_judges=1)},
        {"evaluation": replace(EVALUATION, sampler_steps=3)},
    ],
)
def test_results_of_another_network_judge_or_protocol_do_not_stand_in_one_table(contest, other):
    assert replace(contest(), **other).describe() != contest().describe()


def test_the_name_of_the_registered_model_keeps_results_together(contest):
    named = replace(contest(), network=NetworkOptions(name="mine"))
    assert named.describe() == contest().describe()


def test_a_worker_gets_the_very_contest_as_json(contest):
    chosen = contest(workers=3, cluster="ray://host:1", tune=7)
    assert Contest.read(json.loads(json.dumps(asdict(chosen)))) == chosen


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ((2.0, 50.0), (2.1, 1.0)),  # to have forgotten comes first
        ((0.0, 4.0), (2.0, 5.0)),  # then the lower FID, however much is recognised up to 2 %
        ((2.0, 5.0), (0.0, 5.1)),
        ((30.0, 900.0), (31.0, 1.0)),  # where none forgot, the nearest to it
        ((100.0, 1e9), (float("nan"), 1.0)),
    ],
)
def test_the_search_wants_the_lowest_fid_among_those_that_forgot(better, worse):
    assert tune.score(*better) < tune.score(*worse)


def test_every_method_gets_the_same_rows_whatever_a_step_takes(contest):
    shop = Workshop(contest())
    steps = {name: shop.steps_for(name) for name in ("safemax", "neggrad_plus", "erasediff", "ssd")}
    # 600 rows: 128 a step; 128 + 128; 3 looks at 128 forget rows and their targets before each step; none
    assert steps["safemax"] == 4
    assert steps["neggrad_plus"] == 2
    assert steps["erasediff"] == 1
    assert steps["ssd"] == 0


def test_rows_of_preparation_and_of_steps_are_counted_apart():
    diffusion, batch = tiny_models.diffusion(), tiny_models.batch(4, 0).forget
    with RowCounter(diffusion) as counter:
        diffusion.denoising_loss(batch.x0, batch.c)
        counter.note_start()
        diffusion.denoising_loss(batch.x0[:3], batch.c[:3])
        counter.note_start()
    diffusion.denoising_loss(batch.x0, batch.c)
    assert (counter.prior_rows, counter.rows) == (4, 3)


def test_classes_of_the_report_are_not_searched_on(contest):
    with pytest.raises(InputError, match="tune_classes has a, which is in classes"):
        contest(tune_classes="a")
    contest(tune_classes="a", tune=0)


def test_a_contest_leaves_a_file_a_method_and_base_and_a_page_that_joins_them(
    shared_folder, hpo_cache, mlflow_module_store, tmp_path, monkeypatch
):
    files = tmp_path / "files"
    argv = [
        f"--data={shared_folder / 'data'}", "--methods=safemax", "--tune=2", "--rows=300", "--attacks=partial",
        f"--files={files}", f"--presets={tmp_path / 'tuned.json'}", *SMALL,
    ]  # fmt: skip
    contest_run.run(argv)
    made = {path.name for path in files.glob("*-base*.json")}
    assert made == {f"{name}-base0.json" for name in ("base", "gold", "safemax")}
    content = json.loads((files / "safemax-base0.json").read_text())
    assert [each["variant"] for each in content["corrections"]] == ["default", "tuned"]
    assert content["corrections"][0]["cost"]["rows"] == 256
    assert len(content["search"]["trials"]) == 2
    assert content["corrections"][0]["attacks"]["partial"]["curve"]
    assert content["search"]["trials"][0]["values"] == {}
    found = {"safemax": ["tuned-data"]} if content["search"]["values"] else {}
    assert {name: list(each) for name, each in json.loads((tmp_path / "tuned.json").read_text()).items()} == found
    page = (files / "comparison.html").read_text()
    assert "safemax" in page
    assert "http" not in page.replace("http-equiv", "")

    # the same command trains nothing, on a machine that has nothing but the files; a file that another wrote joins the table
    monkeypatch.setenv("SAFEMAX_CACHE", str(tmp_path / "another-machine"))
    monkeypatch.setattr(Workshop, "_fit", lambda *_: pytest.fail("was done"))
    other = {**content, "method": "newcomer", "base": 1}
    (files / "newcomer-base1.json").write_text(json.dumps(other))
    contest_run.run(argv)
    results = contest_tables.read(files)
    assert "newcomer" in set(contest_tables.standings(results)["method"])
    assert "newcomer on base 0" in contest_tables.missing(results)


def test_knobs_that_beat_the_defaults_become_a_preset_with_the_steps_that_the_rows_paid_for(tmp_path):
    results = [
        {"method": name, "search": {"values": values}, "corrections": [{"cost": {"steps": 75}}]}
        for name, values in (("salun", {"lr": 0.000123456}), ("dimum", {}))
    ]
    contest_run._add_presets(tmp_path / "tuned.json", "tuned-digits", [*results, {"method": "base", "search": None}])
    assert json.loads((tmp_path / "tuned.json").read_text()) == {
        "salun": {"tuned-digits": {"lr": 0.0001235, "steps": 75}}
    }


@pytest.fixture
def files(contest, tmp_path) -> Callable[..., ResultFiles]:
    """Result files of a folder that has salun on base 0, searched in two trials, with one seed and no attack."""
    asked = {"files": str(tmp_path), "tune": 2, "methods": "salun"}
    search = {"values": {}, "best": 0, "classes": ["b"], "cost": {}, "trials": [{}, {}]}
    corrections: list[dict[str, Any]] = [
        {"variant": variant, "class": "a", "seed": 0, "rows": [{"evaluation": 0}, {"evaluation": 1}], "attacks": {}}
        for variant in ("default", "tuned")
    ]
    described = contest(**asked).describe() | {"judges": ["small"]}
    content = {"contest": described, "method": "salun", "base": 0, "code": code_of("salun"), "search": search}
    ResultFiles(contest(**asked)).write(content | {"corrections": corrections})
    return lambda **more: ResultFiles(contest(**{**asked, **more}))


@pytest.mark.parametrize(
    ("asked", "method", "base", "has"),
    [
        ({}, "salun", 0, True),
        ({"evaluations": 1}, "salun", 0, True),
        ({"tune": 0}, "salun", 0, True),
        ({}, "salun", 1, False),
        ({}, "safemax", 0, False),
        ({"rows": 700}, "salun", 0, False),
        ({"seeds": 2}, "salun", 0, False),
        ({"evaluations": 3}, "salun", 0, False),
        ({"tune": 3}, "salun", 0, False),
        ({"tune_classes": "c"}, "salun", 0, False),
        ({"attacks": "partial"}, "salun", 0, False),
    ],
)
def test_an_entry_is_done_where_its_file_holds_all_that_is_asked(files, asked, method, base, has):
    assert files(**asked).has(method, base) is has


def test_a_method_that_any_bases_file_has_searched_is_not_searched_again(files):
    bases, entries = jobs.stages(files(bases=2, seeds=2).contest)
    assert [each["base"] for each in bases] == [0, 1]  # and not the search's base
    entry = next(each for each in entries if each["method"] == "salun")
    assert entry["search"]["classes"] == ["b"]
    assert files(tune=3).search("salun") is None


def test_a_plan_leaves_out_what_the_files_hold(files):
    contest = files(bases=2).contest
    stages = {each.name: each for each in plan_of(contest, "data-ddpm").stages}
    assert "salun: search" not in stages
    assert stages["salun"].does == "2 corrections, measured 2 times each"  # default and tuned, on the second base alone
    assert stages["base and gold"].does == "draw and measure 4 models"
    done = {each.name: each for each in plan_of(files().contest, "data-ddpm").stages}["salun"]
    assert (done.reused, done.takes) == (True, 0)


def test_a_file_of_other_code_is_kept_with_a_note(files, tmp_path):
    path = tmp_path / "salun-base0.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "code": "older"}))
    with pytest.warns(
        Note, match="salun-base0.json was made by other code and is kept; delete it to measure salun again"
    ):
        assert files().has("salun", 0)


def test_a_file_that_cannot_be_read_is_named(files, tmp_path):
    (tmp_path / "salun-base1.json").write_text("{")
    with pytest.raises(InputError, match=r"files: .*salun-base1.json is not a result file \(Expecting"):
        files().has("salun", 0)


def test_a_trial_ends_with_the_class_after_which_it_cannot_win(contest, monkeypatch):
    """The first trial forgets class b at FID 10 and c at FID 20: 15. A later one needs less than 30 on b, and at most 2 %."""
    outcomes = iter([(1, 10), (0, 20), (3, 1), (0, 31), (0, 12), (2, 17), (0, 12), (2.5, 1)])
    seen = []

    def correct(_: Workshop, correction: Correction) -> dict[str, Any]:
        recognised, fid = next(outcomes)
        seen.append(correction.forget)
        cost = {"rows": 10, "prior_rows": 0, "minutes": 0.5}
        return {"rows": [{"recognised": recognised, "fid": fid}], "cost": cost}

    monkeypatch.setattr(Workshop, "correct", correct)
    found = tune.search(Workshop(contest(tune=5, tune_classes="b,c")), "safemax")
    assert seen == [1, 2, 1, 1, 1, 2, 1, 2]
    assert [each["classes"] for each in found.trials] == [2, 1, 1, 2, 2]
    assert found.best == 3
    assert found.describe()["cost"]["rows"] == 80
    assert found.classes == ["b", "c"]


def test_a_trial_draws_what_its_score_needs_alone(contest):
    real = replace(contest(), evaluation=Evaluation())
    report, trial = (Correction("safemax", (), 0, 0, 0, (7,), trial=each) for each in (False, True))
    assert real.measurement(report, 7) == Evaluation(evaluation_seed=7)
    drawn = real.measurement(trial, 7)
    assert drawn.counts == (200, Evaluation().counts[1])
    assert (drawn.second_samples, drawn.main_sampler) == (1, Evaluation().main_sampler)
    assert contest().evaluation.user_samples == 0


def test_an_entry_that_fails_is_named_and_the_others_leave_their_files(
    shared_folder, hpo_cache, mlflow_module_store, tmp_path, monkeypatch
):
    real = Workshop.gold

    def refuse(self: Workshop, number: int, label: int) -> object:
        if number == 0:
            raise InputError("there is no gold today")
        return real(self, number, label)

    monkeypatch.setattr(Workshop, "gold", refuse)
    monkeypatch.setenv("SAFEMAX_CACHE", str(tmp_path / "cache"))
    argv = [f"--data={shared_folder / 'data'}", "--methods=safemax", "--tune=0", "--rows=300", f"--files={tmp_path}"]
    with pytest.raises(
        InputError, match="failed jobs: 1, the first: gold on base 0: InputError: there is no gold today"
    ):
        contest_run.run([*argv, *SMALL])
    assert {path.name for path in tmp_path.glob("*-base0.json")} == {"base-base0.json", "safemax-base0.json"}


def without_times(value: Any) -> Any:
    """Return a result file's content but for the minutes that its parts took."""
    if isinstance(value, dict):
        return {key: without_times(each) for key, each in value.items() if not key.endswith("minutes")}
    return [without_times(each) for each in value] if isinstance(value, list) else value


@pytest.mark.slow
def test_two_workers_one_of_which_is_killed_leave_the_files_of_one_process(
    shared_folder, mlflow_module_store, tmp_path, monkeypatch
):
    pytest.importorskip("ray", reason="needs Ray: pip install 'safemax[ray]'")
    argv = [f"--data={shared_folder / 'data'}", "--methods=safemax,finetune", "--tune=2", "--rows=600", *SMALL]

    def hold(name: str, *more: str) -> dict[str, Any]:
        monkeypatch.setenv("SAFEMAX_CACHE", str(tmp_path / f"{name}-cache"))
        contest_run.run([*argv, f"--files={tmp_path / name}", *more])
        return {path.name: without_times(json.loads(path.read_text())) for path in (tmp_path / name).glob("*-base*")}

    def kill_one_of_two() -> None:
        while not list((tmp_path / "two").glob("*-base0.json")):
            time.sleep(0.02)
        ray_clusters.workers()[0].kill()

    threading.Thread(target=kill_one_of_two, daemon=True).start()
    together = hold("two", "--workers=2")
    experiment = mlflow_module_store.get_experiment_by_name("data-ddpm").experiment_id
    newest = mlflow_module_store.search_runs([experiment], order_by=["attributes.start_time DESC"])[0]
    assert "the end of worker " in newest.data.tags["contest.deaths"]
    assert len(together) == 4
    assert hold("one") == together
