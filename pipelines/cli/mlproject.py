"""`python -m pipelines.cli.mlproject` writes what follows from the knobs: MLproject, knobs.json, and the README's table."""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module

from pipelines import ROOT
from pipelines.cli import index, index_writer
from pipelines.cli.method_options import MethodOptions, for_method
from pipelines.cli.options import DataOptions
from pipelines.cli.parameters import Parameter, parameters, to_text
from pipelines.cli.parser import NOT_GIVEN
from pipelines.engine.signals import LAUNCHER
from safemax.knobs import external, knobs
from safemax.methods import available
from safemax.training.method import Method
from safemax.training.settings import Training

TABLE_BEGIN, TABLE_END = "<!-- methods: written by make project -->", "<!-- end of methods -->"
UNLEARN = index_writer.PROGRAMS[index_writer.UNLEARN]

# Of each entry point, the parameters that people change most; every other one passes through by its name.
DECLARED = {
    "main": ("data", "forget", "base_steps", "steps", "lambda"),
    "pretrain": ("data", "preset", "steps", "minutes", "batch_size", "lr", "architecture"),
    "evaluate": ("model", "forget", "data", "beside", "protocol"),
    "attack": ("model", "forget", "data", "attacks", "gold"),
    "compare": ("methods", "classes", "seeds", "steps", "overrides", "data", "workers"),
    "convert": ("state_dict", "reference", "data"),
    "hpo": ("method", "preset", "forget", "model", "data", "trials", "space", "steps", "workers"),
    "contest": ("methods", "tune", "rows", "classes", "tune_classes", "bases", "seeds", "data", "workers", "files"),
    "export": ("model", "to", "push"),
    "promote": ("model", "version", "alias", "gates", "remeasure", "data", "why", "dry_run"),
    "serve": ("model", "port", "host"),
    "rollback": ("model", "alias", "why", "dry_run"),
    "versions": ("model", "where", "format"),
    "reap": ("unclaimed_minutes", "dead_run", "dry_run"),
    "cache": ("free", "days", "dry_run"),
}
# Of each method, besides its own knobs that a search may draw.
CORRECTION = ("data", "forget", "model", "preset", "steps", "lr")

_HEADER = """\
# Written by `make project` from the knobs of pipelines/, hpo/ and safemax/methods/: change those, not this file.
#
#     mlflow run . --env-manager local --experiment-name digits-ddpm -e safemax -P forget=3 -P lambda=0.5
#
# An entry point declares the parameters that people change most. Its command also accepts all its others: -P seed=1.
# `safemax NAME --help` lists them all. A wrong name or value ends with one line and status 2.
# auto means not given: then the value of a file (-P config=FILE.yaml) or of a preset holds, else the default. A comment begins
# with the default, unless the method has its own or, for data, the corrected model decides. A value that you give always wins.
# MLflow quotes values itself. exec and the launcher's process id let a stop of `mlflow run` reach the pipeline.
name: safemax
conda_env: conda.yaml
"""
_TYPES = {float: "float", int: "int"}  # mlflow passes every type on as it came; the others are text
_WIDTH = 132


@dataclass(frozen=True)
class Entry:
    """An entry point of the project.

    Args:
        name: what `mlflow run -e` calls it.
        module: the program that it runs.
        groups: all knobs of the program, by title.
        declared: the parameters that MLproject declares, by the names that users write.
        fixed: values that the entry point's name decides.
        about: what it does, in one line.
    """

    name: str
    module: str
    groups: Mapping[str, type]
    declared: tuple[str, ...] = ()
    fixed: Mapping[str, str] = field(default_factory=dict)
    about: str = ""

    def parameters(self) -> list[Parameter]:
        """Return the parameters of the program that the entry point's name leaves open, declared or not."""
        every = (each for group in self.groups.values() for each in parameters(group))
        return [each for each in every if each.name not in self.fixed]

    def find(self, name: str) -> Parameter:
        """Return the parameter of a name; KeyError where the program has none."""
        return {each.name: each for each in self.parameters()}[name]

    def default(self, name: str) -> str:
        """Return a parameter's default for its comment; "" where the model's base or the method and its preset decide."""
        of_base = name in knobs(DataOptions) and any(each.name == "model" for each in self.parameters())
        own = (group for group in self.groups.values() if issubclass(group, Method | Training))
        of_method = any(name == each.name for group in own for each in parameters(group))
        if of_base or (of_method and any(issubclass(group, MethodOptions) for group in self.groups.values())):
            return ""
        text = to_text(self.find(name).default)
        return "" if text == NOT_GIVEN else text


def entries() -> tuple[Entry, ...]:
    """Return the project's entry points: the pipelines, and the pipeline `unlearn` once for each method."""
    modules = index_writer.PROGRAMS | {"main": index_writer.PROGRAMS["demo"]}
    pipelines = (_pipeline(name, modules[name], names) for name, names in DECLARED.items())
    return (*pipelines, *(_correction(name, method) for name, method in available().items()))


def mlproject(entry_points: tuple[Entry, ...]) -> str:
    """Return the MLproject file of these entry points, as YAML."""
    corrections = [entry for entry in entry_points if entry.module == UNLEARN]
    shared = _shared(corrections[0]) if corrections else ""
    return f"{_HEADER}{shared}\nentry_points:\n" + "".join(map(_entry_point, entry_points))


def method_table(methods: Mapping[str, type[Method]]) -> str:
    """Return the methods as a Markdown table: name, what it does (its file's docstring), source, knobs and defaults."""
    rows = [
        f"| `{name}` | {_about(method)} | {_cell(linked(method.paper))} | {_knobs(method)} |"
        for name, method in methods.items()
    ]
    return "\n".join(["| method | what it does | source | knobs and defaults |", "|---|---|---|---|", *rows])


def with_table(readme: str, table: str) -> str:
    """Return the README with its table replaced, unchanged where it has no markers for one."""
    pattern = re.compile(f"(?<={re.escape(TABLE_BEGIN)}\n).*?(?={re.escape(TABLE_END)})", re.DOTALL)
    return pattern.sub(lambda _: f"{table}\n", readme)


def main() -> None:
    """Write MLproject, knobs.json and, where there is one, README.md."""
    index.FILE.write_text(index_writer.index(), encoding="utf-8")
    (ROOT / "MLproject").write_text(mlproject(entries()), encoding="utf-8")
    readme = ROOT / "README.md"
    if readme.exists():
        readme.write_text(with_table(readme.read_text(encoding="utf-8"), method_table(available())), encoding="utf-8")


def _pipeline(name: str, module: str, declared: tuple[str, ...]) -> Entry:
    program = import_module(module)
    return Entry(name, module, dict(program.PARAMETERS), declared, about=_first_line(program.__doc__))


def _correction(name: str, method: type[Method]) -> Entry:
    groups = for_method(import_module(UNLEARN).PARAMETERS, name, method)
    own = tuple(external(field) for field, (_, about) in knobs(method).items() if about.search)
    about = _first_line(sys.modules[method.__module__].__doc__)
    return Entry(name, UNLEARN, groups, (*CORRECTION, *own), {"method": name}, about)


def _shared(correction: Entry) -> str:
    """Return what all methods declare, stated once; YAML's `<<: *correction` includes it."""
    rows = _rows(correction, CORRECTION, indent="  ")
    number = f"x-number: &number {{type: float, default: {NOT_GIVEN}}}\n"
    return f"\n# What every method declares, and the form of its own knobs.\nx-correction: &correction\n{rows}{number}"


def _entry_point(entry: Entry) -> str:
    words = [f"{LAUNCHER}=$PPID exec python -m {entry.module}"]
    words += [f"--{name}={value}" for name, value in entry.fixed.items()]
    words += [f"--{name}={{{name}}}" for name in entry.declared]
    command = textwrap.fill(
        " ".join(words), _WIDTH, initial_indent="    command: ", subsequent_indent=" " * 6,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
    return f"{_commented(f'  {entry.name}:', entry.about)}{_declaration(entry)}{command}\n"


def _declaration(entry: Entry) -> str:
    if entry.module == UNLEARN:
        own = "".join(f", {name}: *number" for name in entry.declared if name not in CORRECTION)
        return f"    parameters: {{<<: *correction{own}}}\n"
    rows = _rows(entry, entry.declared, indent=" " * 6)
    return f"    parameters:\n{rows}" if rows else ""


def _rows(entry: Entry, names: Iterable[str], indent: str) -> str:
    rows = ""
    for parameter in map(entry.find, names):
        kind, default = _TYPES.get(parameter.kind, "string"), entry.default(parameter.name)
        row = f"{indent}{parameter.name}: {{type: {kind}, default: {NOT_GIVEN}}}"
        rows += _commented(row, f"{default}: {parameter.about.doc}" if default else parameter.about.doc)
    return rows


def _first_line(doc: str | None) -> str:
    return (doc or "").split("\n")[0]


def _commented(line: str, comment: str) -> str:
    if not comment:
        return f"{line}\n"
    return f"{line}  # {textwrap.shorten(comment, _WIDTH - len(line) - 4, placeholder=' ...')}\n"


def linked(source: str) -> str:
    """Return a citation as Markdown whose arXiv numbers are links."""
    return re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", source)


def _about(method: type[Method]) -> str:
    return _cell(_first_line(sys.modules[method.__module__].__doc__).rstrip("."))


def _knobs(method: type[Method]) -> str:
    return _cell(" ".join(f"`{each.name}={to_text(each.default)}`" for each in parameters(method)))


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    main()
