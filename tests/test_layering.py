"""Imports point down, floor by floor and folder by folder; mlflow and optuna stay at their edge; nothing loads code."""

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
# What a folder may import of its own floor, beside itself and the files that lie directly in safemax/ (errors, knobs).
MAY_IMPORT = {
    "safemax/storage": set(),
    "safemax/data": {"storage"},
    "safemax/diffusion": {"data", "storage"},
    "safemax/diffusion/networks": {"diffusion"},
    "safemax/diffusion/convert": {"diffusion", "storage"},
    "safemax/training": {"diffusion", "data", "storage"},
    "safemax/method_tools": {"diffusion", "data"},
    "safemax/methods": {"method_tools", "training", "diffusion", "data"},
    "safemax/judges": {"data", "storage"},
    "safemax/metrics": {"judges", "data"},
    "safemax/attacks": {"judges", "metrics", "methods", "training", "diffusion", "data", "storage"},
    "safemax/evaluation": {"attacks", "judges", "metrics", "diffusion", "data", "storage"},
    "safemax/reports": {"evaluation", "attacks", "data"},
    "pipelines/cli": {"tracking", "engine"},  # the launcher's process, and how a run failed
    "pipelines/engine": set(),
    "pipelines/tracking": set(),
    "pipelines/registry": {"tracking"},
    "pipelines/correction": {"cli", "registry", "tracking", "engine"},
    "pipelines/examination": {"correction", "cli", "registry", "tracking", "engine"},
    "pipelines/planning": {"correction", "tracking"},
    "pipelines/comparison": {"correction", "cli", "registry", "tracking", "engine"},
}
RUN_CODE = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
RUN_CODE_CALLS = {"torch.load", "torch.save", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "pd.read_pickle"}
# The one exception: weights that exist as .bin alone, opened where the user asks for it, by torch's loader of tensors.
OPENS_PICKLES = {"safemax/storage/pickled.py": {"pickle", "torch.load"}}
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
    found = {str(path.relative_to(ROOT)): set(violations(path.read_text(), floor)) for path in files}
    assert {name: what for name, what in found.items() if what - OPENS_PICKLES.get(name, set())} == {}


def test_the_file_that_opens_pickles_builds_tensors_alone() -> None:
    for name in OPENS_PICKLES:
        calls = [node for node in ast.walk(ast.parse((ROOT / name).read_text())) if isinstance(node, ast.Call)]
        loads = [each for each in calls if ast.unparse(each.func) in ("torch.load", "pickle.load", "pickle.loads")]
        assert len(loads) == 1
        assert "weights_only=True" in map(ast.unparse, loads[0].keywords)


def sideways(source: str, folder: str) -> Iterator[str]:
    """Yield what a file imports of its own floor that its folder may not: other rooms, or a file outside all rooms."""
    floor, _, room = folder.partition("/")
    rooms = {each.partition("/")[2] for each in MAY_IMPORT if each.startswith(f"{floor}/")}
    for name in (name for node in ast.walk(ast.parse(source)) for name in _imported(node)):
        package, _, rest = name.partition(".")
        target = rest.partition(".")[0]
        is_file = target not in rooms and (ROOT / floor / f"{target}.py").is_file()
        if package == floor and target in rooms - MAY_IMPORT[folder] - {room}:
            yield name
        if package == floor == "pipelines" and is_file:  # an entry point
            yield name


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_a_folder_imports_only_what_it_may(folder: str) -> None:
    files = sorted((ROOT / folder).glob("*.py"))
    assert len(files) > 1
    found = [f"{path.relative_to(ROOT)}: {what}" for path in files for what in sideways(path.read_text(), folder)]
    assert found == []


def test_a_folder_within_a_folder_that_imports_it_is_not_imported_back() -> None:
    files = [path for path in (ROOT / "safemax/diffusion").rglob("*.py") if path.parent.name != "convert"]
    assert not [path for path in files if "safemax.diffusion.convert" in path.read_text()]


def test_every_folder_of_code_has_its_rule() -> None:
    folders = {
        str(path.parent.relative_to(ROOT))
        for floor in ("safemax", "pipelines")
        for path in (ROOT / floor).rglob("*/*.py")
    }
    assert folders == set(MAY_IMPORT)


@pytest.mark.parametrize(
    ("folder", "source"),
    [
        ("safemax/data", "from safemax.diffusion import Diffusion"),
        ("safemax/evaluation", "def f():\n    from safemax.reports import html"),
        ("safemax/methods", "from safemax import judges"),
        ("pipelines/correction", "from pipelines.pretrain import pretrain"),
        ("pipelines/comparison", "from pipelines import unlearn"),
        ("pipelines/examination", "from pipelines.comparison import plan"),
        ("pipelines/tracking", "from pipelines.registry import aliases"),
    ],
)
def test_the_rules_of_folders_see_what_they_forbid(folder: str, source: str) -> None:
    assert list(sideways(source, folder))


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
