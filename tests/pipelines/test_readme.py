"""A fresh reader gets from `make demo` to a promoted, served champion by the README's own commands."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import psutil
import pytest
import requests
import yaml
from mlflow import MlflowClient
from PIL import Image

from pipelines import demo as demo_module
from pipelines import unlearn as unlearn_module
from pipelines.cli.parser import parse
from pipelines.correction import correction as correction_module
from pipelines.promote import promote
from pipelines.registry import model_versions
from safemax.diffusion import image_request
from safemax.errors import InputError
from safemax.training.result import FitResult
from tests.pipelines.test_end_to_end import SMALL

ROOT = Path(__file__).parents[2]
HEADING = "## From the demo to a served champion"
NAME = "digits-ddpm"
BODY: dict[str, Any] = {"dataframe_records": [{"class_label": "3"}], "params": {"seed": 7}}
MINUTES = 12


def blocks() -> list[str]:
    """Return the commands of the README's path: up to the champion, the server, and its client."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").split(HEADING)[1].split("\n## ")[0]
    return re.findall(r"```bash\n(.*?)```", section, re.DOTALL)


def test_the_path_has_three_blocks_and_test_the_path_has_three_blocks_and_names_known_entry_points_and_parameters() -> (
    None
):
    path, serve, client = blocks()
    entries = yaml.safe_load((ROOT / "MLproject").read_text())["entry_points"]
    for line in (each for each in path.splitlines() if each.startswith("mlflow run")):
        name = re.search(r"-e (\w+)", line)
        assert name
        given = dict(re.findall(r"-P (\w+)=(\"[^\"]*\"|\S+)", line))
        assert given.keys() <= entries[name[1]]["parameters"].keys()
        groups = import_module(f"pipelines.{name[1]}").PARAMETERS
        parse(name[1], "", groups, [f"--{key}={value}" for key, value in given.items()])
    assert f"models:/{NAME}@champion" in serve
    body = re.search(r"-d '(.*?)'", client)
    assert body
    assert json.loads(body[1]) == BODY


def test_the_path_in_small_ends_with_a_champion_that_draws(
    mlflow_store: MlflowClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    demo_module.demo(SMALL)
    with pytest.raises(InputError, match="is refused by: "):  # three steps teach nothing
        promote(["--dry_run=true"])
    disabled = (
        "verdict",
        "base_recognised",
        "judge_recall",
        "recognised_high",
        "retained_accuracy",
        "accuracy_loss_to_base",
        "fid_ratio_to_base",
        "class_accuracy_loss",
    )
    gates = dict.fromkeys(disabled)
    (tmp_path / "open.yaml").write_text(json.dumps(gates))
    promote(["--why=0 must go", "--remeasure=false", f"--gates={tmp_path / 'open.yaml'}"])
    assert "champion of digits-ddpm: none -> 2" in capsys.readouterr().out
    model = mlflow.pyfunc.load_model(f"models:/{NAME}@champion")
    rows = pd.DataFrame(BODY["dataframe_records"])
    first, again = (model.predict(rows, params={**BODY["params"], "steps": 2}) for _ in range(2))
    assert first == again


def checkout(folder: Path) -> Path:
    """Return a copy of this tree as a clone has it, whose environment is the one that runs the tests."""
    names = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True, text=True, check=True,
    ).stdout.split("\0")  # fmt: skip
    for name in (each for each in names if each and (ROOT / each).is_file()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    environment = folder / ".venv"
    environment.mkdir()
    for name in ("bin", "lib", "pyvenv.cfg"):
        (environment / name).symlink_to(Path(sys.prefix, name))
    (environment / ".installed").touch()
    return folder


def fresh() -> dict[str, str]:
    """Return an environment in which nothing of this project is set."""
    ours = ("MLFLOW_", "SAFEMAX_", "PYTHONPATH", "VIRTUAL_ENV")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


def cpu_seconds_of_others() -> float:
    """Return the CPU seconds that this machine has spent on other work than this test's."""
    total, own = psutil.cpu_times(), os.times()
    return float(total.user + total.nice + total.system - own.children_user - own.children_system)


def shell(commands: str, folder: Path, environment: Mapping[str, str]) -> str:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """A checkout in which the README's commands were run, the server among them; what they printed, and how long it took."""
    folder, environment = checkout(tmp_path_factory.mktemp("clone")), fresh()
    path, serve, client = blocks()
    started, used = time.monotonic(), cpu_seconds_of_others()
    printed = shell(path, folder, environment)
    active = {**environment, "PATH": f"{folder / '.venv' / 'bin'}{os.pathsep}{environment['PATH']}"}
    with (folder / "serve.log").open("wb") as log:
        server = subprocess.Popen(
            ["bash", "-c", serve], cwd=folder, env=active, stdout=log, stderr=log, start_new_session=True
        )
    try:
        shell(client, folder, active)
        minutes, of_others = (time.monotonic() - started) / 60, (cpu_seconds_of_others() - used) / 60
        yield {"folder": folder, "printed": printed, "minutes": minutes, "of_others": of_others}
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@pytest.fixture
def store(followed: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The checkout's store, as the one of this process."""
    folder: Path = followed["folder"]
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
    monkeypatch.setenv("SAFEMAX_CACHE", str(folder / ".safemax"))
    monkeypatch.setattr("mlflow.tracking.fluent._active_experiment_id", None)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_ID", raising=False)
    return folder


@pytest.mark.slow
def test_the_readme_leads_from_the_demo_to_a_served_champion_in_time(followed: dict[str, Any], store: Path) -> None:
    assert "dry run: models:/digits-ddpm/2 would become champion" in followed["printed"]
    assert "champion of digits-ddpm: none -> 2" in followed["printed"]
    assert model_versions.aliased_number(NAME, "champion") == "2"
    assert Image.open(store / "three.png").size == (8, 8)
    images = mlflow.pyfunc.load_model(f"models:/{NAME}@champion").predict(
        pd.DataFrame(BODY["dataframe_records"]), params={**image_request.defaults(), **BODY["params"]}
    )
    assert json.loads((store / "answer.json").read_text()) == {"predictions": images}
    refused = requests.post(
        "http://127.0.0.1:5001/invocations", json={"dataframe_records": [{"class_label": "0"}]}, timeout=60
    )
    assert refused.status_code == 400
    assert "class_label = '0' was forgotten by this model" in refused.json()["message"].splitlines()[-1]
    duration = f"{followed['minutes']:.1f} minutes, in which other work took {followed['of_others']:.1f} minutes of CPU"
    print(duration)
    if followed["of_others"] > 0.2 * followed["minutes"]:
        pytest.skip(f"the machine was busy: {duration}")
    assert followed["minutes"] < MINUTES


@pytest.mark.slow
def test_the_default_gates_refuse_the_base_a_wrong_class_and_a_collapsed_model(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="refused by: .*classes forgotten"):
        promote(["--version=base"])
    unlearn_module.unlearn(["--forget=0", "--steps=40", "--lr=0.02", "--retain-samples=50", "--previews=0"])
    with pytest.raises(InputError, match="refused by: .*accuracy lost to base"):
        promote([])

    class WrongClass(correction_module.Trainer):
        def fit(self) -> FitResult:
            self.forget = (7,)
            return super().fit()

    monkeypatch.setattr(correction_module, "Trainer", WrongClass)
    unlearn_module.unlearn(["--forget=0", "--steps=150", "--retain-samples=50", "--previews=0"])
    with pytest.raises(InputError, match="refused by: verdict; recognised, 0;"):
        promote([])
    assert model_versions.aliased_number(NAME, "champion") == "2"


@pytest.mark.slow
def test_a_second_correction_starts_from_the_champion_and_is_promoted_as_the_first_class_stays_forgotten(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unlearn_module.unlearn(
        [f"--model=models:/{NAME}@champion", "--forget=7", "--steps=300", "--retain-samples=50", "--previews=0"]
    )
    evidence = model_versions.evidence(f"models:/{NAME}@candidate")
    assert evidence["forgotten"] == ["0", "7"]
    assert evidence["earlier"]["0"]["recognised_high"] < 5
    assert len(evidence["environment"]["commit"]) in (40, len("unknown"))
    promote(["--expect=2"])
    printed = capsys.readouterr().out
    assert "recognised, 7" in printed
    assert "recognised, 0 (earlier)" in printed
    assert evidence["root_metrics"].keys() == evidence["base_metrics"].keys()
