from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pandas as pd
import pytest

from benchmarks.gpu import archive, choices, index
from benchmarks.gpu.cifar10 import panel
from benchmarks.gpu.drawing import Drawing
from benchmarks.gpu.plan import MINUTES, PLAN, budgets
from benchmarks.gpu.stage import Stage
from benchmarks.official import BenchmarkOptions
from pipelines import ROOT
from pipelines.cli.parameters import UsageError
from safemax.errors import Stopped

CALLS = [line for line in PLAN.splitlines() if line.startswith("source ")]


def stage(folder: Path, minutes: float = 1.0) -> Stage:
    return Stage("step", minutes, folder, folder / "work", True, "python -m benchmarks.gpu --rehearse")


def tasks(folder: Path) -> dict[str, str]:
    return pd.read_csv(folder / "tasks.csv").set_index("task")["outcome"].to_dict()


def run(*words: str, folder: Path, timeout: float) -> subprocess.CompletedProcess[str]:
    (folder / "out").mkdir()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OUT": str(folder / "out")}
    places = [f"--results={folder / 'results'}", f"--work={folder / 'work'}"]
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *places, *words],
        cwd=ROOT,
        env=environment,
        timeout=timeout,
        capture_output=True,
        text=True,
    )


def test_stages_get_their_usual_minutes_unless_others_are_given() -> None:
    assert budgets("all", "auto") == MINUTES
    assert budgets("cifar10, step", "cifar10=7.5") == {"step": MINUTES["step"], "cifar10": 7.5}


@pytest.mark.parametrize(
    ("stages", "minutes"),
    [("smoke,stpe", "auto"), ("all", "steps=2"), ("all", "step"), ("all", "step=0"), ("all", "step=x")],
)
def test_a_wrong_stage_or_budget_is_refused(stages: str, minutes: str) -> None:
    with pytest.raises(UsageError, match="unknown stage|minutes: .* is not allowed"):
        budgets(stages, minutes)


def test_the_plan_is_three_calls_that_this_program_takes_and_that_fit_a_quarter_of_an_hour() -> None:
    assert len(CALLS) == 3
    assert all(len(each) < 2000 for each in CALLS)
    chosen = [re.search(r"--stages=(\S+) --minutes=(\S+)", each) for each in CALLS]
    asked = [budgets(match[1], match[2]) for match in chosen if match]
    assert sorted(name for each in asked for name in each) == sorted(MINUTES)
    assert sum(sum(each.values()) for each in asked) <= 13.5
    assert sum(MINUTES.values()) <= 13.5


def test_a_task_that_fails_or_is_stopped_takes_no_other_along_and_each_is_recorded_at_once(tmp_path: Path) -> None:
    it = stage(tmp_path)

    def fail() -> None:
        raise ValueError("no\nluck")

    def stop() -> None:
        assert tasks(tmp_path) == {"first": "failed: ValueError: no luck"}
        raise Stopped

    def wrapped() -> None:
        raise RuntimeError("compiler") from Stopped()

    assert [it.attempt("first", fail), it.attempt("second", stop), it.attempt("third", wrapped)] == [False] * 3
    assert it.attempt("fourth", lambda: None)
    assert list(tasks(tmp_path).values()) == ["failed: ValueError: no luck", "out of time", "out of time", "done"]


def test_a_task_for_which_too_little_time_is_left_is_skipped_and_a_late_one_is_not(tmp_path: Path) -> None:
    it = stage(tmp_path, minutes=0.5)
    assert not it.attempt("long", lambda: pytest.fail("was run"), needs=1.0)
    it.started = time.monotonic() - 60
    assert not it.attempt("any", lambda: pytest.fail("was run"))
    assert it.attempt("last table", lambda: None, late=True)
    assert tasks(tmp_path)["long"].startswith("no time: 0.5 minutes left, it needs 1.0")


def test_a_table_says_command_machine_versions_date_and_that_it_is_a_rehearsal(tmp_path: Path) -> None:
    stage(tmp_path).table("t", "Title", pd.DataFrame({"ms": [1.5]}, index=pd.Index(["a"], name="step")), "Remark.")
    text = (tmp_path / "t.md").read_text()
    assert text.startswith("# Title\n")
    for part in (
        "`python -m benchmarks.gpu --rehearse`",
        "torch ",
        "Python 3.",
        "diffusers ",
        "Rehearsal",
        "| a | 1.500 |",
        "Remark.",
    ):
        assert part in text
    assert re.search(r"\d{4}-\d\d-\d\d", text)
    assert (tmp_path / "t.csv").read_text() == "step,ms\na,1.5\n"


def test_a_stage_is_zipped_small_files_first_and_only_when_something_is_new(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    monkeypatch.setattr(archive, "LARGEST", 5000)
    folder = tmp_path / "step"
    for path, size in ((folder / "deep" / "large.bin", 6000), (folder / "small.md", 10), (tmp_path / "out" / "x", 0)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)
    target = archive.pack(folder)
    assert target is not None
    assert zipfile.ZipFile(target).namelist() == ["step/small.md"]
    made = target.stat().st_mtime_ns
    assert archive.pack(folder) == target
    assert target.stat().st_mtime_ns == made


def test_without_a_place_for_them_no_zips_are_made(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("OUT", raising=False)
    assert archive.pack(tmp_path) is None


def test_the_index_keeps_what_it_said_of_stages_that_this_command_does_not_run(tmp_path: Path) -> None:
    for name in ("smoke", "step"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "table.md").write_text(f"# About {name}\n")
    index.write(tmp_path, "first", {"smoke": "done after 1.0 of 2 minutes"})
    text = index.write(tmp_path, "second", {"step": "running"}).read_text()
    assert "done after 1.0 of 2 minutes; `first`" in text
    assert "running; `second`" in text
    assert "- [table.md](step/table.md): About step" in text


def test_the_panel_gives_the_change_of_fid_with_an_interval_of_both_errors(tmp_path: Path) -> None:
    # FID 12 after 10, standard errors 0.3 and 0.4: the difference 2 has the error 0.5, so 2 -+ 0.98
    children = pd.DataFrame(
        {
            "variant": ["base", "safemax"],
            "forget": ["bird"] * 2,
            "retain/fid_judge": [10.0, 12.0],
            "retain/fid_judge_se": [0.3, 0.4],
        }
    )
    panel(stage(tmp_path), children)
    row = pd.read_csv(tmp_path / "panel.csv").set_index("variant").loc["safemax"]
    assert row["FID change"] == pytest.approx(2.0)
    assert (row["change low"], row["change high"]) == pytest.approx((1.02, 2.98))


def test_a_switch_pays_after_its_set_up_by_what_it_saves_and_an_unmeasured_one_has_no_row(tmp_path: Path) -> None:
    steps = [
        {"step": "SAFEMax", "precision": "bf16", "ms": 30.0, "set-up s": 2.0},
        {"step": "SAFEMax, compiled", "precision": "bf16", "ms": 20.0, "set-up s": 62.0},
        {"step": "SAFEMax, channels_last", "precision": "bf16", "ms": 40.0, "set-up s": 3.0},
    ]
    drawing = Drawing(stage(tmp_path), BenchmarkOptions(), [{"computed": "exact", "s": 4.0, "set-up s": 1.0}])
    drawing.rows.append({"computed": "bf16", "s": 2.0, "set-up s": 0.5})
    choices.write(stage(tmp_path), steps, drawing, 128)
    found = pd.read_csv(tmp_path / "choices.csv").set_index("switch")
    assert list(found.index) == ["channels_last=true", "compile", "arithmetic=bf16"]
    assert found.loc["compile", "gain"] == 1.5
    assert found.loc["compile", "pays after"] == 6000  # 60 s by 10 ms
    assert found.loc["channels_last=true", "gain"] == 0.75
    assert pd.isna(found.loc["channels_last=true", "pays after"]), "what gains nothing never pays"
    assert (found.loc["arithmetic=bf16", "gain"], found.loc["arithmetic=bf16", "pays after"]) == (2.0, 0.0)


def test_a_stage_that_runs_out_of_time_is_stopped_and_the_next_one_still_runs(tmp_path: Path) -> None:
    words = ("--stages=smoke,step", "--minutes=smoke=0.01,step=0.01", "--rehearse")
    ended = run(*words, folder=tmp_path, timeout=200)
    assert ended.returncode == 0, ended.stderr
    text = (tmp_path / "results" / "index.md").read_text()
    assert len(re.findall("out of time after", text)) == 2
    assert {each.name for each in (tmp_path / "out").iterdir()} == {"index.md", "smoke.zip", "step.zip"}


@pytest.mark.slow
def test_the_rehearsal_runs_all_of_it(tmp_path: Path) -> None:
    minutes = ",".join(f"{name}=20" for name in MINUTES)
    ended = run("--rehearse", f"--minutes={minutes}", folder=tmp_path, timeout=1500)
    assert ended.returncode == 0, ended.stderr
    results = tmp_path / "results"
    for name in MINUTES:
        assert (results / name / "state.txt").read_text().startswith("done"), (results / name / "log.txt").read_text()[
            -3000:
        ]
        assert set(tasks(results / name).values()) == {"done"}
        assert (tmp_path / "out" / f"{name}.zip").exists()
    compared = results / "cifar10" / "compare-cifar10"
    made = ("table1.md", "table2.md", "figure1.png", "figure2.png", "figure3.png", "paired.csv")
    assert all((compared / each).exists() for each in made)
    assert "UA % (paper)" in (compared / "table1.csv").read_text()
    judged = pd.read_csv(results / "cifar10" / "three-judges.csv")
    assert judged.groupby(["model", "forgotten"]).size().eq(3).all()
    assert set(judged["forgotten"]) == {"airplane", "bird"}
    assert "gold" in (results / "cifar10" / "gold" / "compare-cifar10" / "table1.csv").read_text()
    drawn = pd.read_csv(results / "step" / "sampling.csv")["computed"]
    assert list(drawn) == ["exact", "bf16", "bf16, channels_last", "compiled"]
    assert len(pd.read_csv(results / "step" / "choices.csv")) == len(choices.STEPS) + len(choices.DRAWS) - 1
    assert (results / "search" / "front.png").exists()
    assert list((results / "attacks").glob("safemax-airplane*.csv"))
