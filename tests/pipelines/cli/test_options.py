"""The options that several entry points share: the reason for a move is any text that prints, a bool may come from Python."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from pipelines import ROOT
from pipelines.cli.mlproject import Entry, mlproject
from pipelines.cli.options import AliasOptions
from pipelines.cli.parameters import UsageError
from pipelines.cli.parser import parse
from pipelines.reap import PARAMETERS

ALIAS: dict[str, type] = {"alias": AliasOptions}


def options(*argv: str) -> AliasOptions:
    chosen: AliasOptions = parse("prog", "doc", ALIAS, argv)["alias"]
    return chosen


@pytest.mark.parametrize(
    ("given", "recorded"),
    [
        ("better than 2", "better than 2"),
        ("UA\u00a099\u202f%", "UA 99 %"),  # no-break spaces, as word processors set them
        ("first line\nsecond\r\n\tthird ", "first line second third"),
        ("\u3000全角\u3000", "全角"),
        ("🎉 👩\u200d💻 ❤\ufe0f", "🎉 👩\u200d💻 ❤\ufe0f"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("\n", ""),
    ],
)
def test_a_reason_is_recorded_with_single_spaces(given: str, recorded: str) -> None:
    assert options(f"--why={given}").why == recorded


@pytest.mark.parametrize("bad", ["\0", "\x1b[31m", "\x07", "\u202e", "\u2066", "\ufeff", "\udcff", "\x7f"])
def test_a_reason_with_a_character_that_does_not_print_is_refused(bad: str) -> None:
    with pytest.raises(
        UsageError, match="^why = .* is not allowed; why is text without control characters$"
    ) as refusal:
        options(f"--why=a{bad}b")
    assert str(refusal.value).isprintable()


@pytest.mark.parametrize("bad", ["a\nb", "a\u00a0b"])
def test_text_that_is_no_sentence_is_taken_as_it_is_or_refused(bad: str) -> None:
    with pytest.raises(UsageError, match="^model = "):
        options(f"--model={bad}")


@pytest.mark.parametrize(("text", "value"), [("true", True), ("True", True), ("false", False), ("False", False)])
def test_a_bool_may_be_written_as_python_writes_it(text: str, value: bool) -> None:
    assert options(f"--dry_run={text}").dry_run is value


@pytest.mark.parametrize("text", ["TRUE", "1", "yes", "", "true "])
def test_other_words_are_no_bool(text: str) -> None:
    with pytest.raises(UsageError, match="dry_run is true or false"):
        options(f"--dry_run={text}")


@pytest.mark.slow
def test_a_python_caller_may_give_a_bool(
    mlflow_store: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "MLproject").write_text(mlproject((Entry("reap", "pipelines.reap", PARAMETERS, ("dry_run",)),)))
    (tmp_path / "conda.yaml").write_text("name: x\n")
    mlflow.projects.run(str(tmp_path), entry_point="reap", parameters={"dry_run": True}, env_manager="local")
    (run,) = mlflow_store.search_runs(["0"])
    assert (run.info.status, run.data.params["reap.dry_run"]) == ("FINISHED", "True")
