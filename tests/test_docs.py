"""The documentation builds without a warning, needs no network, and what it says of the code is so."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import safemax.attacks
import safemax.methods
import safemax.metrics
from docs.generate import ASKED_FOR, FOR_RAW_READERS
from pipelines.attack import with_knobs
from pipelines.cli import mlproject
from pipelines.cli.console import ConsoleOptions
from pipelines.cli.parameters import parameters
from pipelines.cli.parser import parse
from safemax.evaluation.metric_info import infos
from safemax.training.method import Method
from tests.safemax.attacks import test_contract as attack_contract
from tests.safemax.methods import test_contract as method_contract
from tests.safemax.metrics import test_metrics as metric_contract

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAPERS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
PAGES = sorted([*DOCS.glob("*.md"), *(ROOT / name for name in PAPERS)])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_site_has_every_entry_point_metric_method_and_public_name(site: Path) -> None:
    page = {path.stem: path.read_text(encoding="utf-8") for path in site.glob("*.html")}
    for entry in mlproject.entries():
        assert f'id="{entry.name}"' in page["entry-points"]
    assert all(f"<code>{name}</code>" in page["metrics"] for name in infos())
    assert all(f"<code>{name}</code>" in page["methods"] for name in safemax.methods.available())
    assert all(f"<code>{name}</code>" in page["promote"] for name in safemax.attacks.available())
    from safemax import api

    functions = [
        name for name in vars(safemax)["__all__"] if getattr(getattr(safemax, name), "__module__", "") == api.__name__
    ]
    assert len(functions) == 7
    assert all(f'id="safemax.api.{name}"' in page["library"] for name in functions)
    assert not set(re.findall(r"<!-- generate.*?-->|This is the raw file", "".join(page.values())))


def test_a_raw_page_that_lacks_generated_tables_says_so() -> None:
    for page in DOCS.glob("*.md"):
        text = page.read_text(encoding="utf-8")
        assert (FOR_RAW_READERS in text) == bool(ASKED_FOR.search(text)), page.name


def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 25
    loads = re.compile(r"<(?:script|img|link|iframe)[^>]+(?:src|href)=\"?(?:https?:)?//[^\" >]+")
    for path in pages:
        text = re.sub(r'<link rel="?canonical[^>]*>', "", path.read_text(encoding="utf-8"))
        assert loads.findall(text) == [], path


def test_every_room_is_in_the_picture_of_the_floors() -> None:
    words = set(re.findall(r">([\w/]+)<", (DOCS / "floors.svg").read_text(encoding="utf-8")))
    rooms = {path.parent.name for floor in ("safemax", "pipelines") for path in (ROOT / floor).glob("*/__init__.py")}
    assert rooms <= words
    assert {"safemax/", "pipelines/", "hpo/"} <= words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_to_one(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        generated = page.parent == DOCS and target.startswith("api/")
        assert target.startswith("http") or generated or (page.parent / target).exists(), target


def commands() -> Iterator[tuple[str, str]]:
    """Yield every entry point and parameter that a page passes to it by -P."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for name, rest in re.findall(r"-e (\w+)((?: +-P \w+=(?:\"[^\"]*\"|[^\s`]+))+)", text):
            yield from ((name, key) for key in re.findall(r"-P (\w+)=", rest))


def test_every_command_names_an_entry_point_and_parameters_that_there_are() -> None:
    of_all = {each.name for each in parameters(ConsoleOptions)}
    known = {entry.name: of_all | {each.name for each in entry.parameters()} for entry in mlproject.entries()}
    known["zero_prediction"] = known["safemax"]  # the example of "Add a method"
    named = list(commands())
    assert len(named) > 20
    assert [(name, key) for name, key in named if key not in known.get(name, ())] == []


def blocks(page: str) -> list[str]:
    """Return the Python blocks of a page."""
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)


def extend(package: types.ModuleType, name: str, source: str, folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Let a package find a file that lies in another folder, as if it lay in its own, until the test ends."""
    (folder / f"{name}.py").write_text(source, encoding="utf-8")
    patch.setattr(package, "__path__", [*package.__path__, str(folder)])
    patch.setitem(sys.modules, f"{package.__name__}.{name}", None)  # removed with the test
    patch.delitem(sys.modules, f"{package.__name__}.{name}")
    importlib.invalidate_caches()


def run_tests(source: str) -> None:
    """Run the test functions of a block."""
    names: dict[str, Any] = {}
    exec(compile(source, "the page", "exec"), names)
    tests = [value for name, value in names.items() if name.startswith("test_")]
    assert tests
    for test in tests:
        test()


def test_the_method_of_the_page_is_found_meets_the_contract_and_its_test_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, test = blocks("add-a-method.md")
    extend(safemax.methods, "zero_prediction", source, tmp_path, monkeypatch)
    safemax.methods.available.cache_clear()
    try:
        run_tests(test)
        method: type[Method] = safemax.methods.find("zero_prediction")
        assert "zero_prediction" in mlproject.method_table({"zero_prediction": method})
        for check in (
            method_contract.test_it_cites_a_source,
            method_contract.test_its_defaults_lie_within_their_bounds_and_search_ranges,
            method_contract.test_its_training_defaults_are_fields_of_training,
            method_contract.test_its_loss_terms_are_scalars_of_one_graph_a_group,
            method_contract.test_the_same_seed_gives_the_same_weights_and_another_does_not,
        ):
            check("zero_prediction")
        method_contract.test_a_model_without_a_null_label_is_trained_or_refused_before_any_work("zero_prediction", "")
    finally:
        safemax.methods.available.cache_clear()


def test_the_attack_of_the_page_meets_the_contract_and_its_test_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, test = blocks("add-an-attack.md")
    extend(safemax.attacks, "more_steps", source, tmp_path, monkeypatch)
    safemax.attacks.available.cache_clear()
    try:
        run_tests(test)
        attack = safemax.attacks.find("more_steps")
        attack_contract.test_it_names_its_source_and_refuses_a_knob_outside_its_bounds("more_steps", attack)
        attack_contract.test_it_leaves_model_and_base_as_they_were("more_steps", attack, null=True)
        groups = with_knobs()
        assert list(groups)[:3] == ["relearn", "invert", "guided"]
        assert parse("attack", "", groups, ["--more-steps-limit=9"])["more_steps"].more_steps_limit == 9
    finally:
        safemax.attacks.available.cache_clear()


def test_the_metric_of_the_page_is_found_meets_the_contract_and_its_test_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, test = blocks("add-a-metric.md")
    extend(safemax.metrics, "contrast", source, tmp_path, monkeypatch)
    safemax.metrics.available.cache_clear()
    try:
        run_tests(test)
        metric_contract.test_a_metric_states_a_phrase_and_a_direction_of_each_number("contrast")
        metric_contract.test_no_two_metrics_state_the_same_key()
        given = metric_contract.drawn()
        metric_contract.test_a_metric_returns_only_numbers_that_it_states_and_the_same_ones_again("contrast", given)
        metric, main = safemax.metrics.available()["contrast"].create(given[0]), given[1][0]
        metric.update(main)
        (value,) = metric.compute().values()
        pixels = main.of(given[0].forget).images.flatten(1).numpy()
        assert value == pytest.approx(np.ptp(pixels, axis=1).mean())
        (tmp_path / "another").mkdir()
        with monkeypatch.context() as patch:
            metric_contract.test_a_new_file_is_a_metric_of_every_measurement(tmp_path / "another", patch)
    finally:
        safemax.metrics.available.cache_clear()


def test_the_workflow_does_what_ci_does_and_runs_the_slow_tests_at_night() -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "checks.yaml").read_text())["jobs"]
    assert ".ci/run" in [step.get("run") for step in jobs["fast"]["steps"]]
    assert any("-m pytest -m" in step.get("run", "") and "slow" in step["run"] for step in jobs["slow"]["steps"])
    assert "schedule" in jobs["slow"]["if"]


def test_the_citation_and_the_package_agree() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = (ROOT / "pyproject.toml").read_text()
    assert f'version = "{citation["version"]}"' in project
    assert f'license = "{citation["license"]}"' in project
    assert (ROOT / "LICENSE").read_text().split()[:4] == ["Apache", "License", "Version", "2.0,"]
