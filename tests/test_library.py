"""`import safemax` is a library: light, typed, documented, true to the commands, and whole in a wheel."""

from __future__ import annotations

import ast
import doctest
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from PIL import Image

import safemax
from pipelines.pretrain import pretrain
from pipelines.registry import model_versions
from pipelines.unlearn import unlearn
from safemax.errors import InputError
from safemax.storage import source_digest
from tests.pipelines.test_end_to_end import EVALUATION, SMALL
from tests.support import tiny_models

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "examples" / "unlearn.ipynb"
WITH_DOCTESTS = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "safemax").rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)


def python(script: str, folder: Path, *path: Path) -> subprocess.CompletedProcess[str]:
    """Run a script in a folder outside the checkout, with these folders first on the path."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path)), "SAFEMAX_CACHE": ".safemax"}
    return subprocess.run(
        [sys.executable, "-c", script], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_importing_safemax_is_quick_and_loads_nothing(tmp_path: Path) -> None:
    script = """
import sys, time
before, start = set(sys.modules), time.perf_counter()
import safemax
took = time.perf_counter() - start
print(took, sorted(name for name in set(sys.modules) - before if name.split(".")[0] == "safemax"), "torch" in sys.modules)
"""
    took, _, rest = python(script, tmp_path, ROOT).stdout.partition(" ")
    assert rest == "['safemax'] False\n"
    assert float(took) < 0.5


def test_every_public_name_is_there_documented_and_shown_by_dir() -> None:
    for name in vars(safemax)["__all__"]:
        value = getattr(safemax, name)
        assert inspect.getdoc(value)
        assert name in dir(safemax)
    assert not {name for name in vars(safemax)["__all__"] if (Path(safemax.__file__).parent / f"{name}.py").exists()}


def test_type_checkers_see_the_names_that_are_loaded_lazily() -> None:
    tree = ast.parse(Path(safemax.__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    imported = {
        alias.asname or "": node.module
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert imported == vars(safemax)["_HOME_OF"]
    assert sorted(imported) == vars(safemax)["__all__"]
    assert (Path(safemax.__file__).parent / "py.typed").exists()


def test_the_face_makes_no_cache_depend_on_the_whole_library() -> None:
    files = {path.name for path in source_digest._closure(("safemax",))}
    assert files == {"__init__.py"}


def test_an_unknown_name_is_an_attribute_error_and_a_room_can_still_be_imported_from_the_face() -> None:
    with pytest.raises(AttributeError, match="module 'safemax' has no attribute 'unlern'"):
        getattr(safemax, "unlern")  # noqa: B009 - a type checker refuses the attribute
    from safemax import attacks

    assert attacks is import_module("safemax.attacks")


@pytest.mark.parametrize("module", WITH_DOCTESTS)
@pytest.mark.filterwarnings("ignore:ema = ")
def test_the_examples_in_docstrings_are_true(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SAFEMAX_CACHE", str(tmp_path))
    flags = doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL
    failed, tried = doctest.testmod(import_module(module), optionflags=flags)
    assert tried
    assert failed == 0


def test_the_library_trains_and_unlearns_to_the_weights_of_the_commands(mlflow_store: MlflowClient) -> None:
    pretrain(["--steps=2", "--batch-size=8", "--seed=3"])
    unlearn(["--forget=0", "--lambda=2", "--steps=2", "--batch-size=8", "--seed=4", "--previews=0", *EVALUATION])
    registered = [
        safemax.Diffusion.load(model_versions.resolve(f"models:/digits-ddpm/{number}")).digest() for number in (1, 2)
    ]
    data = safemax.load_data("digits")
    base = safemax.pretrain(data, steps=2, batch_size=8, seed=3)
    corrected = safemax.unlearn(
        base, safemax.method("safemax", lmbda=2.0), data, forget="0", steps=2, batch_size=8, seed=4
    )
    assert [base.digest(), corrected.digest()] == registered


def test_unlearning_returns_a_copy_reports_losses_and_cost_and_leaves_model_and_method_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAFEMAX_CACHE", str(tmp_path))
    base, data, logged = tiny_models.diffusion(), tiny_models.dataset(), []
    method, before = safemax.method("safemax"), base.digest()
    corrected = safemax.unlearn(
        base,
        method,
        data,
        forget=[0, "b"],
        steps=2,
        batch_size=8,
        log=lambda metrics, step: logged.append((metrics, step)),
    )
    assert corrected.digest() != before == base.digest()
    assert method.run_steps == 1
    (losses, _), (cost, step) = logged
    assert {"loss/forget", "loss/retain"} <= losses.keys()
    assert cost["cost/images_seen"] == 16
    assert step == 2


def test_a_method_may_be_named_and_brings_its_own_training_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAFEMAX_CACHE", str(tmp_path))
    logged: list[dict[str, float]] = []
    safemax.unlearn(
        tiny_models.diffusion(), "esd", tiny_models.dataset(), forget="a", steps=1, log=lambda m, step: logged.append(m)
    )
    assert logged[-1]["cost/images_seen"] == 64  # ESD's batch, all of it forget rows


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: safemax.unlearn(tiny_models.diffusion(), "safemx", tiny_models.dataset(), forget=0), "unknown method"),
        (
            lambda: safemax.unlearn(tiny_models.diffusion(), "safemax", tiny_models.dataset(), forget=0, step=1),
            "unknown field of Training 'step' .did you mean 'steps'",
        ),
        (
            lambda: safemax.evaluate(tiny_models.diffusion(), tiny_models.dataset(), forget="z"),
            "unknown class 'z'; known: a, b, c",
        ),
        (
            lambda: safemax.evaluate(tiny_models.diffusion(), tiny_models.dataset(), forget="a", protocl="fast"),
            "unknown field of Evaluation 'protocl' .did you mean 'protocol'",
        ),
        (lambda: safemax.sample(tiny_models.diffusion(), ["z"]), "unknown class 'z'"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(call: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        call()


def test_samples_are_asked_for_by_name_index_or_tensor() -> None:
    diffusion, sampler = tiny_models.diffusion(), safemax.Sampler("ddim", 2)
    by_name = safemax.sample(diffusion, ["a", 2], sampler=sampler, seed=1)
    assert torch.equal(by_name, safemax.sample(diffusion, torch.tensor([0, 2]), sampler=sampler, seed=1))
    assert safemax.sample(diffusion, "b", sampler=sampler).shape == (1, 1, 8, 8)


def displayed(notebook: Path, **changed: int) -> list[Any]:
    """Run a notebook's code cells with other values of some of its parameters; return what its cells display."""
    cells = [cell for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    names: dict[str, Any] = {}
    shown = []
    for text in ("".join(cell["source"]) for cell in cells):
        for name, value in changed.items():
            text = re.sub(rf"^{name} = \d+", f"{name} = {value}", text, flags=re.MULTILINE)
        tree = ast.parse(text)
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, notebook.name, "exec"), names)
        if isinstance(last, ast.Expr):
            shown.append(eval(compile(ast.Expression(last.value), notebook.name, "eval"), names))
    assert all(names[name] == value for name, value in changed.items())
    return shown


@pytest.mark.filterwarnings("ignore:ema = ")
def test_the_notebook_runs_and_shows_pictures_and_numbers_of_both_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SAFEMAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MPLBACKEND", "agg")
    shown = displayed(NOTEBOOK, BASE_STEPS=3, UNLEARN_STEPS=10, FORGET_SAMPLES=20, JUDGE_STEPS=3, COLUMNS=2)
    before, after = (each for each in shown if isinstance(each, Image.Image))
    assert before.size == after.size == (2 * 42, 10 * 42)  # two columns of ten digits of 40 + 2 pixels
    assert before.tobytes() != after.tobytes()
    table = shown[-1]
    assert list(table.columns) == ["base", "corrected"]
    assert table.notna().all(axis=None)
    assert (tmp_path / "digits-without-0" / "unet").is_dir()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree, built from a copy so that nothing is written here."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("safemax", "pipelines", "hpo"):
        shutil.copytree(ROOT / name, folder / "tree" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "tree" / name)
    pip("wheel", "--no-build-isolation", "--wheel-dir", folder, folder / "tree")
    (built,) = folder.glob("*.whl")
    return built


def pip(*words: str | Path) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", words[0], "--quiet", "--no-deps", *words[1:]]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)


@pytest.mark.slow
def test_the_wheel_holds_all_that_the_checkout_has_and_no_more(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        about = {Path(name).name: archive.read(name).decode() for name in archive.namelist() if ".dist-info/" in name}
    ours = {
        str(path.relative_to(ROOT))
        for floor in ("safemax", "pipelines", "hpo")
        for path in (ROOT / floor).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert held == ours
    assert {"safemax/py.typed", "pipelines/registry/gates.yaml"} <= held
    assert "License-Expression: Apache-2.0" in about["METADATA"]
    assert "Apache License" in about["LICENSE"]


@pytest.mark.slow
def test_the_commands_work_from_the_wheel_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    place, work = tmp_path / "site", tmp_path / "work"
    work.mkdir()
    pip("install", "--target", place, wheel)

    def command(module: str, *words: str) -> subprocess.CompletedProcess[str]:
        script = f"import runpy, sys; sys.argv[1:] = {words!r}; runpy.run_module({module!r}, run_name='__main__')"
        return python(script, work, place)

    assert command("pipelines.unlearn", "--help").stdout.startswith("usage: python -m pipelines.unlearn")
    demo = command("pipelines.demo", *SMALL)
    assert "registered as models:/digits-ddpm/2, alias candidate" in demo.stdout
    assert str(ROOT) not in demo.stdout + demo.stderr
    refused = command(
        "pipelines.promote", "--dry_run=true"
    )  # by the gates.yaml of the wheel: three steps teach nothing
    assert refused.returncode == 1
    assert "is refused by: " in refused.stderr
    search = command("hpo.search", "--forget=0", "--trials=1", "--steps=1", "--batch-size=8", *EVALUATION)
    assert search.returncode == 0, search.stderr
    report = command("pipelines.evaluate", "--model=models:/digits-ddpm/2", "--forget=0", *EVALUATION)
    assert report.returncode == 0, report.stderr


@pytest.mark.slow
def test_an_installed_safemax_refuses_another_distribution_of_the_same_package(wheel: Path, tmp_path: Path) -> None:
    place, other = tmp_path / "site", tmp_path / "other"
    pip("install", "--target", place, wheel)
    (other / "hpo").mkdir(parents=True)
    (other / "hpo" / "__init__.py").touch()
    (other / "pyproject.toml").write_text('[project]\nname = "other-search"\nversion = "1"\n')
    assert python("import pipelines, hpo", tmp_path, place).stderr == ""
    pip("install", "--no-build-isolation", "--target", tmp_path / "another", other)
    for module in ("pipelines", "hpo"):
        refused = python(f"import {module}", tmp_path, place, tmp_path / "another").stderr.splitlines()[-1]
        assert refused == (
            "ImportError: safemax and other-search both install a package 'hpo'; "
            "install safemax in an environment of its own"
        )
