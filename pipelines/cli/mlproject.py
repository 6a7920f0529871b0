"""`python -m pipelines.cli.mlproject` writes what follows from the knobs: MLproject, and the method table of the README."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module

from pipelines import ROOT
from pipelines.cli.parameters import Parameter, Value, for_method, parameters, written
from pipelines.engine.signals import LAUNCHER
from safemax.methods import available
from safemax.training.method import Method

TABLE_BEGIN, TABLE_END = "<!-- methods: written by make project -->", "<!-- end of methods -->"

_HEADER = """\
# Written by `make project` from the knobs of pipelines/ and safemax/methods/: change those, not this file.
# mlflow quotes the values itself; exec and the launcher's process id let a stop of `mlflow run` reach the pipeline.
name: safemax
conda_env: conda.yaml
entry_points:
"""
_TYPES = {float: "float", int: "int"}  # mlflow passes every type on as it came; the others are text


@dataclass(frozen=True)
class Entry:
    """An entry point: its module, its groups of knobs by title, and the parameters whose values its name fixes."""

    name: str
    module: str
    groups: Mapping[str, type]
    fixed: Mapping[str, str] = field(default_factory=dict)

    def parameters(self) -> list[Parameter]:
        """Return the parameters that are left to choose, in order."""
        every = [each for group in self.groups.values() for each in parameters(group)]
        return [each for each in every if each.name not in self.fixed]


def entries() -> tuple[Entry, ...]:
    """Return the project's entry points: the pipelines, and the pipeline `unlearn` once for each method."""
    unlearn = _groups_of("pipelines.unlearn")
    return (
        Entry("main", "pipelines.demo", _groups_of("pipelines.demo")),
        Entry("pretrain", "pipelines.pretrain", _groups_of("pipelines.pretrain")),
        Entry("evaluate", "pipelines.evaluate", _groups_of("pipelines.evaluate")),
        Entry("attack", "pipelines.attack", _groups_of("pipelines.attack")),
        Entry("compare", "pipelines.compare", _groups_of("pipelines.compare")),
        Entry("convert", "pipelines.convert", _groups_of("pipelines.convert")),
        # Not the training: a method has defaults of its own, and what is given is held. Undeclared, it passes too.
        Entry("hpo", "hpo.search", {k: v for k, v in _groups_of("hpo.search").items() if k != "training"}),
        *(
            Entry(name, f"pipelines.{name}", _groups_of(f"pipelines.{name}"))
            for name in ("promote", "rollback", "versions", "reap")
        ),
        *(
            Entry(name, "pipelines.unlearn", for_method(unlearn, name, method), fixed={"method": name})
            for name, method in available().items()
        ),
    )


def mlproject(entry_points: tuple[Entry, ...]) -> str:
    """Return the MLproject file of these entry points, as YAML."""
    return _HEADER + "".join(map(_entry_point, entry_points))


def method_table(methods: Mapping[str, type[Method]]) -> str:
    """Return the methods as a Markdown table: name, what it does (its file's docstring), source, knobs and defaults."""
    rows = [
        f"| `{name}` | {_about(method)} | {_source(method)} | {_knobs(method)} |" for name, method in methods.items()
    ]
    return "\n".join(["| method | what it does | source | knobs and defaults |", "|---|---|---|---|", *rows])


def with_table(readme: str, table: str) -> str:
    """Return the README with its table replaced, unchanged where it has no markers for one."""
    pattern = re.compile(f"(?<={re.escape(TABLE_BEGIN)}\n).*?(?={re.escape(TABLE_END)})", re.DOTALL)
    return pattern.sub(lambda _: f"{table}\n", readme)


def main() -> None:
    """Write MLproject and, where there is one, README.md."""
    (ROOT / "MLproject").write_text(mlproject(entries()), encoding="utf-8")
    readme = ROOT / "README.md"
    if readme.exists():
        readme.write_text(with_table(readme.read_text(encoding="utf-8"), method_table(available())), encoding="utf-8")


def _groups_of(module: str) -> dict[str, type]:
    return dict(import_module(module).PARAMETERS)


def _entry_point(entry: Entry) -> str:
    rows = [
        f"      {each.name}: {{type: {_TYPES.get(each.kind, 'string')}, default: {_yaml(each.default)}}}\n"
        for each in entry.parameters()
    ]
    words = [f"{LAUNCHER}=$PPID exec python -m {entry.module}"]
    words += [f"--{name}={value}" for name, value in entry.fixed.items()]
    words += [f"--{each.name}={{{each.name}}}" for each in entry.parameters()]
    command = "".join(f"      {word}\n" for word in words)
    return f"  {entry.name}:\n    parameters:\n{''.join(rows)}    command: >-\n{command}"


def _yaml(value: Value) -> str:
    """Return a default as YAML 1.1 keeps it: text in quotes (true, 1e-05 and none too), a float with its point."""
    if isinstance(value, float):
        return re.sub(r"^(-?\d+)e", r"\1.0e", repr(value))
    return repr(value) if isinstance(value, int) and not isinstance(value, bool) else json.dumps(written(value))


def _source(method: type[Method]) -> str:
    return re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", _cell(method.paper))


def _about(method: type[Method]) -> str:
    return _cell((sys.modules[method.__module__].__doc__ or "").split("\n")[0].rstrip("."))


def _knobs(method: type[Method]) -> str:
    return _cell(" ".join(f"`{each.name}={written(each.default)}`" for each in parameters(method)))


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    main()
