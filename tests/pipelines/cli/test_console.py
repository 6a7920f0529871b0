"""The console script answers help and refuses mistakes at once, from an index that is what the dataclasses say."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipelines import ROOT
from pipelines.cli import console, index, index_writer, parser
from pipelines.cli.index import commands
from pipelines.cli.parameters import UsageError, parameters
from pipelines.cli.parser import text_of
from safemax.methods import available

SCRIPT = """
import sys
from pipelines.cli.console import safemax
try:
    safemax()
finally:
    print("loaded:", [name for name in ("torch", "mlflow", "diffusers", "optuna") if name in sys.modules])
"""


def safemax(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the console script."""
    everything = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, "-c", SCRIPT, *words]
    return subprocess.run(command, env=everything, capture_output=True, text=True, check=False)


def test_the_committed_index_is_what_the_dataclasses_generate() -> None:
    assert index.FILE.read_text(encoding="utf-8") == index_writer.index()


def test_every_program_and_every_method_is_a_command() -> None:
    assert list(commands()) == [*index_writer.PROGRAMS, *available()]
    salun = commands()["salun"]
    assert (salun.module, salun.fixed) == ("pipelines.unlearn", {"method": "salun"})
    _, sections = salun.resolve(["--method=salun"])
    assert [each.name for each in sections["salun"]] == [each.name for each in parameters(available()["salun"])]
    (steps,) = [each for each in sections["training"] if each.name == "steps"]
    assert steps.default == available()["salun"].training.get("steps", 1000)


@pytest.mark.parametrize(
    ("words", "status", "out", "err"),
    [
        (["--help"], 0, "usage: safemax COMMAND", ""),
        (["--version"], 0, "safemax 0.1.0", ""),
        (["unlearn", "--help"], 0, "usage: safemax unlearn [--parameter=value ...]\n\nCorrect a model", ""),
        (["unlearn", "--stps=3"], 2, "", "error: unknown parameter 'stps' (did you mean 'steps'?); known: method, "),
        (
            ["salun", "--mask_ratio=2"],
            2,
            "",
            "error: mask_ratio = 2 is not allowed; mask_ratio is a number from 0 to 1",
        ),
        (["unlearn", "--preset=papr", "--method=salun"], 2, "", "error: unknown preset of salun 'papr' (did you mean"),
        (["unlern"], 2, "", "error: unknown command 'unlern' (did you mean 'unlearn'?); known: demo, "),
        (["hpo", "--method=salun", "--trials=0"], 2, "", "error: trials = 0 is not allowed"),
        (["salun", "--method=esd"], 2, "", "error: method is given twice"),
    ],
)
def test_help_and_mistakes_are_answered_within_two_seconds_without_torch(
    words: list[str], status: int, out: str, err: str
) -> None:
    started = time.perf_counter()
    done = safemax(*words)
    took = time.perf_counter() - started
    assert done.returncode == status
    assert done.stdout.startswith(out)
    assert done.stderr.startswith(err)
    assert done.stdout.endswith("loaded: []\n")
    assert took < 2


def test_an_entry_point_run_as_a_module_answers_help_without_torch() -> None:
    for module in ("pipelines.unlearn", "hpo.search"):
        command = [sys.executable, "-X", "importtime", "-m", module, "--help"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        assert done.stdout.startswith(f"usage: python -m {module} ")
        assert "torch" not in done.stderr


def test_the_help_of_a_method_says_what_it_does_and_leaves_out_what_its_name_fixes() -> None:
    text = safemax("selective_amnesia", "--help").stdout
    assert "\n\nSelective Amnesia: train the forget class on noise" in text
    assert "\n    safemax selective_amnesia --data=cifar10 --forget=airplane\n" in text
    assert "salun" not in text
    assert "\n  --preset=paper sets pixel_sum=true, " in text
    assert "\nselective_amnesia\n  --lambda=10.0\n" in text
    assert "\nevery command\n  --config=none\n" in text
    assert "\n  --method=" not in text


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_gets_its_completion(shell: str) -> None:
    assert "safemax" in safemax("completion", shell).stdout


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("safemax unl", {"unlearn "}),
        ("safemax salun --mask_r", {"--mask_ratio "}),
        ("safemax unlearn --method=salun --mask_r", {"--mask_ratio "}),
        ("safemax unlearn --protocol ", {"fast", "paper", "custom"}),
        ("safemax unlearn --method=sel", {"selective_amnesia "}),
        ("safemax promote --dry_run=", {"true", "false"}),
    ],
)
def test_names_and_values_are_completed(line: str, offered: set[str], tmp_path: Path) -> None:
    asked = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_TYPE": "9"}
    asked |= {"_ARGCOMPLETE_IFS": "\n", "_ARGCOMPLETE_COMP_WORDBREAKS": " =:", "PYTHONPATH": str(ROOT)}
    answering = f"exec 8> {tmp_path}/answers 9> /dev/null; exec {sys.executable} -c '{SCRIPT}'"
    subprocess.run(["bash", "-c", answering], env={**os.environ, **asked}, check=False, capture_output=True)
    assert set((tmp_path / "answers").read_text().split("\n")) == offered


def test_a_run_that_mlflow_opened_says_why_it_was_refused(
    mlflow_store: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = mlflow_store.create_run("0")
    monkeypatch.setenv("MLFLOW_RUN_ID", run.info.run_id)
    monkeypatch.setattr("sys.argv", ["safemax", "unlearn", "--stps=3"])
    with pytest.raises(SystemExit):
        console.safemax()
    after = mlflow_store.get_run(run.info.run_id)
    assert after.info.run_name.startswith("refused: unknown parameter 'stps' (did you mean 'steps'?)")
    assert len(after.info.run_name) <= 100
    assert after.data.tags["failure"].startswith("unknown parameter 'stps'")
    assert "Refused before any work" in after.data.tags["mlflow.note.content"]


SPEAKING = """
import logging, warnings
from pipelines.cli.console import ConsoleOptions
ConsoleOptions(verbosity={!r}).apply()
import mlflow
logging.getLogger("mlflow.store.db.utils").info("Creating tables")
warnings.warn_explicit("going away", FutureWarning, "x.py", 1, module="diffusers.utils")
warnings.warn("ema is slow")
import os
print(os.environ.get("TQDM_DISABLE"), os.environ["MLFLOW_LOGGING_LEVEL"])
"""


@pytest.mark.parametrize(
    ("verbosity", "inherited"), [("quiet", "1 ERROR"), ("normal", "None WARNING"), ("verbose", "None INFO")]
)
def test_only_verbose_shows_what_libraries_tell_each_other_and_children_inherit_it(
    verbosity: str, inherited: str
) -> None:
    environment = {
        key: value for key, value in os.environ.items() if key not in ("TQDM_DISABLE", "MLFLOW_LOGGING_LEVEL")
    }
    command = [sys.executable, "-c", SPEAKING.format(verbosity)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == f"{inherited}\n"
    if verbosity == "verbose":
        assert "Creating tables" in done.stderr
        assert "FutureWarning: going away" in done.stderr
    else:
        assert done.stderr == "warning: ema is slow\n"


def test_a_choice_called_auto_is_a_value_and_no_way_to_give_none() -> None:
    precision = [each for each in commands()["unlearn"].sections["training"] if each.name == "precision"]
    assert parser.read_all({"precision": precision[0]}, [("precision", "auto")]) == {"precision": "auto"}
    assert text_of(["--preset=auto"], "preset") is None
    with pytest.raises(UsageError, match="unknown precision 'fp8'"):
        parser.read_all({"precision": precision[0]}, [("precision", "fp8")])


def test_a_cluster_called_auto_is_one() -> None:
    for name in ("hpo", "compare"):
        (cluster,) = (
            each for section in commands()[name].sections.values() for each in section if each.name == "cluster"
        )
        assert parser.read_all({"cluster": cluster}, [("cluster", "auto")]) == {"cluster": "auto"}


PRINTING = {
    **{name: ["-m", command.module, "--help"] for name, command in commands().items() if not command.fixed},
    "safemax": ["-c", "from pipelines.cli.console import safemax; safemax()", "--help"],
    "a method": ["-c", "from pipelines.cli.console import safemax; safemax()", "salun", "--help"],
    "completion": ["-c", "from pipelines.cli.console import safemax; safemax()", "completion", "bash"],
    "in a program": [
        "-c",
        "from pipelines.cli import parser; parser.main(lambda argv: parser.parse('x', 'Does.', {}, argv))",
        "--help",
    ],
}


@pytest.mark.parametrize("name", PRINTING)
def test_a_reader_that_has_seen_enough_ends_a_command_without_a_word(name: str) -> None:
    """As `COMMAND --help | head -1` does, whose end of the pipe is closed before all is written."""
    command = subprocess.Popen(
        [sys.executable, *PRINTING[name]], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert command.stdout is not None
    assert command.stderr is not None
    command.stdout.close()
    said = command.stderr.read()
    command.stderr.close()
    assert (command.wait(), said) == (0, "")
