"""MLproject and the README's table say what the knobs say, and mlflow reads them as they were meant."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import ClassVar

import pytest
from mlflow.projects.utils import load_project

from pipelines.cli import mlproject, parser
from pipelines.cli.method_options import parse_for_method, preset_settings
from pipelines.cli.mlproject import Entry
from pipelines.cli.parameters import parameters, to_text
from safemax.knobs import knob
from safemax.methods import available
from safemax.methods.finetune import Finetune


@dataclass
class Awkward:
    """Defaults that YAML, str.format, the shell or the command line could each spoil."""

    lr: float = knob(1e-05, "a float that YAML 1.1 would take for text")
    large: float = knob(1e22, "repr has no point")
    lmbda: float = knob(1.0, "reserved in Python")
    whole: int = knob(-3, "begins with a dash")
    flag: bool = knob(True, "YAML has a type for it")
    empty: str = knob("", "nothing")
    none: str = knob("none", "not null")
    number: str = knob("1.0", "text all the same")
    shell: str = knob("a b'c\"d $HOME `x`; #{e} \\ %s", "special to bash, str.format and YAML")
    option: str = knob("--lr=2", "looks like an option")
    colon: str = knob("models:/a@b: é", "special to YAML")
    label: int = field(default=7)


@dataclass
class MethodOptions:
    method: str = knob("finetune", "which", choices=("finetune", "salun"))


NAMES = tuple(each.name for each in parameters(Awkward))
SAMPLE = Entry(
    "sample", "sample", {"awkward": Awkward, "choice": MethodOptions}, NAMES, {"method": "salun"}, "A: b, c #d."
)
ENTRIES = {entry.name: entry for entry in mlproject.entries()}


def _argv(entry: Entry, folder: Path, given: dict[str, str]) -> list[str]:
    """Return what bash would hand to Python for `mlflow run -e NAME -P ...`, by mlflow's own reading of the file."""
    (folder / "MLproject").write_text(mlproject.mlproject((entry,)), encoding="utf-8")
    (folder / "conda.yaml").touch()
    command_line = load_project(folder).get_entry_point(entry.name).compute_command(given, None)
    launcher, *words = shlex.split(command_line)
    assert launcher == "SAFEMAX_LAUNCHER=$PPID"
    assert words[:4] == ["exec", "python", "-m", entry.module]
    return words[4:]


def _parse(entry: Entry, folder: Path, given: dict[str, str]) -> parser.Arguments:
    return parser.parse(entry.name, "", entry.groups, _argv(entry, folder, given))


def test_a_parameter_that_is_not_given_has_its_default_after_yaml_format_shell_and_command_line(tmp_path: Path) -> None:
    assert _parse(SAMPLE, tmp_path, {}) == {"awkward": Awkward(), "choice": MethodOptions(method="salun")}


def test_every_value_given_to_mlflow_survives_too(tmp_path: Path) -> None:
    given = {"lr": "-2e3", "lambda": "0", "shell": "x}'{0} $(y)", "none": "--", "flag": "false", "empty": "a"}
    expected = Awkward(lr=-2000.0, lmbda=0.0, shell="x}'{0} $(y)", none="--", flag=False, empty="a")
    assert _parse(SAMPLE, tmp_path, given)["awkward"] == expected


def test_a_value_of_a_parameter_that_mlproject_does_not_declare_survives_too(tmp_path: Path) -> None:
    given = {"lr": "-2e3", "lambda": "0", "shell": "x}'{0} $(y)", "none": "-x", "flag": "false", "empty": ""}
    expected = Awkward(lr=-2000.0, lmbda=0.0, shell="x}'{0} $(y)", none="-x", flag=False)
    assert _parse(replace(SAMPLE, declared=()), tmp_path, given)["awkward"] == expected


def test_what_the_name_of_an_entry_point_fixes_is_not_left_to_choose(tmp_path: Path) -> None:
    assert "method" not in [each.name for each in SAMPLE.parameters()]
    with pytest.raises(parser.UsageError, match="method is given twice"):
        _parse(SAMPLE, tmp_path, {"method": "finetune"})


def test_a_parameter_that_the_program_does_not_have_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(parser.UsageError, match="unknown parameter 'lrr' .did you mean 'lr'"):
        _parse(SAMPLE, tmp_path, {"lrr": "1"})


def test_types_are_declared_for_numbers_and_everything_else_is_a_string() -> None:
    text = mlproject.mlproject((SAMPLE,))
    assert "      lr: {type: float, default: auto}  # 1e-05: a float that YAML 1.1 would take for text\n" in text
    assert "      whole: {type: int, default: auto}  # -3: begins with a dash\n" in text
    assert "      flag: {type: string, default: auto}  # true: YAML has a type for it\n" in text


def test_a_default_is_shown_unless_a_method_that_the_user_chooses_decides_it() -> None:
    shown = {entry.name: entry.default("steps") for entry in mlproject.entries() if "steps" in entry.declared}
    assert (shown["main"], shown["pretrain"], shown["safemax"]) == ("300", "800", "")


def test_the_committed_mlproject_is_what_the_knobs_generate() -> None:
    committed = (mlproject.ROOT / "MLproject").read_text(encoding="utf-8")
    assert committed == mlproject.mlproject(mlproject.entries())
    assert len(committed.splitlines()) <= 300


@pytest.mark.parametrize("name", ENTRIES)
def test_what_an_entry_point_declares_the_program_has_and_the_command_passes_on(name: str) -> None:
    entry, project = ENTRIES[name], load_project(mlproject.ROOT).get_entry_point(name)
    assert set(entry.declared) <= {each.name for each in entry.parameters()}
    assert list(project.parameters) == list(entry.declared)
    assert set(re.findall(r"--(\w+)={\1}", project.command)) == set(entry.declared)


@pytest.mark.parametrize("name", available())
def test_a_declared_parameter_that_a_preset_sets_is_not_given_unless_the_user_gives_it(
    name: str, tmp_path: Path
) -> None:
    entry = ENTRIES[name]
    given = parser.parse(name, "", entry.groups, _argv(entry, tmp_path, {})).given
    for preset in available()[name].presets:
        assert not given & set(preset_settings(name, preset))
    assert given == {"method"}


@pytest.mark.parametrize("name", available())
def test_what_mlflow_is_given_wins_over_a_preset_where_it_is_the_default_too(name: str, tmp_path: Path) -> None:
    entry, method = ENTRIES[name], available()[name]
    for preset in method.presets:
        for knob_name in preset_settings(name, preset):
            default = entry.find(knob_name).default
            argv = _argv(entry, tmp_path, {"preset": preset, knob_name: to_text(default)})
            _, arguments = parse_for_method("x", "", import_module(mlproject.UNLEARN).PARAMETERS, argv)
            assert arguments.record()[knob_name] == {"value": default, "source": "given"}


def test_the_table_in_the_readme_is_what_the_methods_generate() -> None:
    readme = (mlproject.ROOT / "README.md").read_text(encoding="utf-8")
    assert mlproject.TABLE_BEGIN in readme
    assert readme == mlproject.with_table(readme, mlproject.method_table(available()))


def test_each_entry_point_starts_with_the_defaults_of_its_dataclasses(tmp_path: Path) -> None:
    for entry in ENTRIES.values():
        parsed = _parse(entry, tmp_path, {})
        for title, group in entry.groups.items():
            assert parsed[title] == group(**{key: value for key, value in entry.fixed.items() if hasattr(group, key)})


class Forget(Finetune):
    paper: ClassVar[str] = "A | B, arXiv:2310.12508"


def test_a_table_has_a_row_for_each_method_with_what_its_file_says_its_source_and_its_knobs() -> None:
    head, _, row = mlproject.method_table({"forget": Forget}).splitlines()
    about = str(__doc__).removesuffix(".")
    source = r"A \| B, [arXiv:2310.12508](https://arxiv.org/abs/2310.12508)"
    assert head == "| method | what it does | source | knobs and defaults |"
    assert row == f"| `forget` | {about} | {source} | `null_drop=0.1` `min_snr_gamma=0.0` |"


def test_only_what_lies_between_the_markers_is_replaced() -> None:
    before, after = f"# Title\n{mlproject.TABLE_BEGIN}\n", f"{mlproject.TABLE_END}\ntext\n"
    once = mlproject.with_table(f"{before}old\nrows\n{after}", r"| \1 |")
    assert once == f"{before}| \\1 |\n{after}"
    assert mlproject.with_table(once, r"| \1 |") == once
    assert mlproject.with_table("no markers", "| x |") == "no markers"
