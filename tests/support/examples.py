"""The example files in the docstrings of the interfaces, as modules."""

from __future__ import annotations

import importlib.util
import sys
import textwrap
from itertools import dropwhile, takewhile
from pathlib import Path
from types import ModuleType

import pytest


def example_of(interface: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the indented file in a module's docstring, written to a folder and imported as a user's file would be."""
    lines = dropwhile(lambda line: not line.startswith("    from "), (interface.__doc__ or "").splitlines())
    code = takewhile(lambda line: not line or line.startswith("    "), lines)
    path = folder / "example.py"
    path.write_text("from __future__ import annotations\n\n" + textwrap.dedent("\n".join(code)))
    spec = importlib.util.spec_from_file_location("example", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "example", module)
    spec.loader.exec_module(module)
    return module
