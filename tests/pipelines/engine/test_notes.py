"""A note is one line of a program, told once and by the first process, from wherever it comes; other warnings stay."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import hpo
import pipelines
import safemax
from pipelines.engine import notes
from safemax.errors import Note, note

FLOORS = (safemax, pipelines, hpo)


def test_a_note_is_one_line_and_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        notes.show_as_lines()
        for text in ("the first", "the\nsecond", "the first", "the second"):
            note(text)
    assert capsys.readouterr().err == "the first\nthe second\n"


def test_only_the_first_process_tells_it(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with warnings.catch_warnings():
        notes.show_as_lines()
        note("the model has no null label")
    assert capsys.readouterr().err == ""


def test_a_warning_of_a_library_stays_as_it_is(recwarn: pytest.WarningsRecorder) -> None:
    with warnings.catch_warnings():
        notes.show_as_lines()
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    assert [each.category for each in recwarn.list] == [DeprecationWarning]


def test_a_notebook_sees_a_note_as_a_warning() -> None:
    with pytest.warns(Note, match="told"):
        note("told")


def test_every_note_is_told_in_this_way() -> None:
    """No file of ours calls `warnings.warn` by itself, which a command would show with a path and a line of code."""
    files = [path for floor in FLOORS for path in Path(floor.__path__[0]).rglob("*.py")]
    callers = {path.name for path in files if re.search(r"warnings\.warn\(|import warn\b", path.read_text())}
    assert callers == {"errors.py"}


PROGRAM = """
from pipelines.cli import parser
from safemax.errors import note

def run(argv):
    note("told")
    note("told")

parser.main(run)
"""


def test_a_command_shows_a_note_without_its_place_in_the_code() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "told\n")
