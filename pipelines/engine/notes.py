"""Notes of a program: one line each on stderr, once, without the file and line of code that a warning of Python shows."""

from __future__ import annotations

import sys
import warnings
from typing import TextIO

from pipelines.engine.signals import is_follower_rank
from safemax.errors import Note


def show_as_lines() -> None:
    """From now on show a note as one line, the first time that it is told, and nothing from a rank other than 0."""
    other, told = warnings.showwarning, set[str]()

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        text = " ".join(str(message).split())
        if not issubclass(category, Note):
            other(message, category, filename, lineno, file, line)
        elif text not in told and not is_follower_rank():
            told.add(text)
            print(text, file=sys.stderr, flush=True)

    warnings.filterwarnings("always", category=Note)
    warnings.showwarning = show
