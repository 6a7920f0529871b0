"""What the command line knows of every command before anything heavy is imported: help, and the check of names and values.

knobs.json holds the parameters of all commands. `make project` writes it from the dataclasses, and a test keeps it true.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from pipelines.cli.parameters import Parameter, UsageError, Value, excerpt
from pipelines.cli.parser import choose, text_of
from safemax.errors import unknown

FILE = Path(__file__).with_name("knobs.json")
METHOD = "method"

Sections = Mapping[str, list[Parameter]]


@dataclass(frozen=True)
class MethodKnobs:
    """What a method adds to a command that runs one.

    Args:
        does: what it does, in one line.
        about: that, its source and what its presets set, for the help.
        parameters: its own knobs.
        training: defaults of the training that it changes.
        presets: their names.
    """

    does: str
    about: str
    parameters: list[Parameter]
    training: Mapping[str, Value]
    presets: Sequence[str]


@dataclass(frozen=True)
class Command:
    """A command.

    Args:
        name: what follows `safemax` on the command line.
        module: the module that carries it out, by the function of its own name.
        about: the module's docstring.
        sections: its parameters by the title of their section.
        methods: those that it can run, by name; empty for a command that runs none.
        fixed: values that the command's name decides.
    """

    name: str
    module: str
    about: str
    sections: Sections
    methods: Mapping[str, MethodKnobs] = field(default_factory=dict)
    fixed: Mapping[str, str] = field(default_factory=dict)

    def resolve(self, argv: Sequence[str]) -> tuple[str, Sections]:
        """Return what the help says and the sections, those of the method that argv chooses among them.

        Raises:
            UsageError: an unknown method or preset.
        """
        if not self.methods:
            return self.about, self.sections
        (default,) = (each.default for section in self.sections.values() for each in section if each.name == METHOD)
        name = choose(argv, METHOD, {name: name for name in self.methods}, str(default))
        method = self.methods[name]
        preset = text_of(argv, "preset") or "none"
        if preset not in ("none", *method.presets):
            raise UsageError(str(unknown(f"preset of {name}", excerpt(preset), method.presets)))
        shared = {title: _with_defaults(section, method.training) for title, section in self.sections.items()}
        about = self._of_one(method) if self.fixed else f"{self.about}\n\n{method.about}"
        return about, {**shared, name: method.parameters}

    def _of_one(self, method: MethodKnobs) -> str:
        """Return what the help of a method's own command says: what `unlearn` does, with calls of this one."""
        does, *_, leaves = self.about.strip().split("\n\n")
        calls = [
            f"    safemax {self.name} --data=cifar10 --forget=airplane",
            f"    safemax {self.name} --model=models:/digits-ddpm@champion --forget=7     (one more class)",
        ]
        own = method.about.removeprefix(f"--method={self.name}, shown here: ")
        return "\n\n".join([does, "\n".join(calls), leaves, own])


@cache
def commands() -> dict[str, Command]:
    """Return all commands by name: the programs, then the methods, each of which is `unlearn` with that method."""
    content = json.loads(FILE.read_text(encoding="utf-8"))
    groups = {name: [Parameter.from_json(each) for each in group] for name, group in content["groups"].items()}
    methods = {
        name: MethodKnobs(facts["does"], facts["about"], _section(facts, groups), facts["training"], facts["presets"])
        for name, facts in content["methods"].items()
    }
    programs = {name: _command(name, facts, groups, methods) for name, facts in content["commands"].items()}
    unlearn = programs["unlearn"]
    return programs | {name: replace(unlearn, name=name, fixed={METHOD: name}) for name in methods}


def _command(name: str, facts: Mapping[str, Any], groups: Sections, methods: Mapping[str, MethodKnobs]) -> Command:
    sections = {title: _section(each, groups) for title, each in facts["sections"].items()}
    return Command(name, facts["module"], facts["about"], sections, methods if facts["runs_a_method"] else {})


def _section(facts: Mapping[str, Any], groups: Sections) -> list[Parameter]:
    return _with_defaults(groups[facts["group"]], facts["defaults"])


def _with_defaults(section: list[Parameter], defaults: Mapping[str, Value]) -> list[Parameter]:
    return [replace(each, default=defaults[each.name]) if each.name in defaults else each for each in section]
