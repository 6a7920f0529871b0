"""Imports point down the three floors, mlflow and optuna stay at their edge, and no floor loads what can run code."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ABOVE = {
    "safemax": {"pipelines", "hpo", "mlflow", "optuna", "argparse"},
    "pipelines": {"hpo", "optuna"},
    "hpo": set(),
}
EVERYWHERE_ABOVE = {"tests", "benchmarks"}
RUN_CODE = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
RUN_CODE_CALLS = {"torch.load", "torch.save", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "pd.read_pickle"}
RUN_CODE_SWITCHES = {"trust_remote_code", "allow_pickle"}


def violations(source: str, floor: str) -> Iterator[str]:
    """Yield what a file of a floor does that it may not: imports from above, and loads that can run code."""
    forbidden = ABOVE[floor] | EVERYWHERE_ABOVE | RUN_CODE
    for node in ast.walk(ast.parse(source)):
        yield from (name for name in _imported(node) if name.split(".")[0] in forbidden or name in RUN_CODE_CALLS)
        if isinstance(node, ast.Attribute) and ast.unparse(node) in RUN_CODE_CALLS:
            yield ast.unparse(node)
        if isinstance(node, ast.keyword) and node.arg in RUN_CODE_SWITCHES and ast.unparse(node.value) != "False":
            yield ast.unparse(node)


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [each.name for each in node.names]
    if isinstance(node, ast.ImportFrom) and not node.level:
        return [f"{node.module}.{each.name}" for each in node.names]
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
        return [each.value for each in node.args if isinstance(each, ast.Constant) and isinstance(each.value, str)]
    return []


@pytest.mark.parametrize("floor", ABOVE)
def test_a_floor_imports_nothing_from_above_and_loads_nothing_that_can_run_code(floor: str) -> None:
    files = sorted((ROOT / floor).rglob("*.py"))
    assert files
    found = [f"{path.relative_to(ROOT)}: {what}" for path in files for what in violations(path.read_text(), floor)]
    assert found == []


@pytest.mark.parametrize(
    ("floor", "source"),
    [
        ("safemax", "import mlflow.pyfunc"),
        ("safemax", "def f():\n    from pipelines import command"),
        ("safemax", "from argparse import ArgumentParser"),
        ("safemax", "importlib.import_module('optuna.study')"),
        ("pipelines", "import numpy, optuna"),
        ("pipelines", "import hpo"),
        ("pipelines", "from tests.conftest import model"),
        ("hpo", "import pickle"),
        ("safemax", "state = torch.load(path, weights_only=True)"),
        ("safemax", "from torch import load"),
        ("pipelines", "yaml.load(text, Loader=yaml.SafeLoader)"),
        ("pipelines", "from_pretrained(folder, trust_remote_code=True)"),
        ("pipelines", "np.load(path, allow_pickle=flag)"),
    ],
)
def test_the_rules_see_what_they_forbid(floor: str, source: str) -> None:
    assert list(violations(source, floor))


@pytest.mark.parametrize(
    ("floor", "source"),
    [
        ("pipelines", "import mlflow\nfrom safemax.knobs import knob"),
        ("hpo", "import mlflow, optuna\nfrom pipelines import tracking"),
        ("safemax", "import torch\nfrom safetensors.torch import load_file"),
        ("safemax", "from_pretrained(folder, trust_remote_code=False)"),
        ("pipelines", "yaml.safe_load(text)"),
    ],
)
def test_the_rules_leave_alone_what_is_allowed(floor: str, source: str) -> None:
    assert not list(violations(source, floor))
