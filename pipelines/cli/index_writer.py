"""The index of all knobs, knobs.json, from the dataclasses: each group once, and each command as the groups that it has."""

from __future__ import annotations

import json
from importlib import import_module
from types import ModuleType
from typing import Any

from pipelines.cli.method_options import MethodOptions, about, first_line
from pipelines.cli.parameters import parameters
from safemax.knobs import external
from safemax.methods import available

UNLEARN = "unlearn"
PROGRAMS = {
    **{name: f"pipelines.{name}" for name in ("demo", "pretrain", UNLEARN, "evaluate", "attack", "compare", "convert")},
    "hpo": "hpo.search",
    "contest": "hpo.contest.run",
    **{
        name: f"pipelines.{name}"
        for name in ("export", "promote", "rollback", "versions", "serve", "ui", "reap", "cache")
    },
}
"""The module of each command; a method is a command too, `unlearn` with that method."""


def index() -> str:
    """Return the content of knobs.json."""
    groups: dict[str, type] = {}
    commands = {name: _command(import_module(module), groups) for name, module in PROGRAMS.items()}
    methods = {name: _method(name, groups) for name in available()}
    described = {name: [each.to_json() for each in parameters(group)] for name, group in sorted(groups.items())}
    content = {"commands": commands, "methods": methods, "groups": described}
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _command(program: ModuleType, groups: dict[str, type]) -> dict[str, Any]:
    shared: dict[str, type] = program.PARAMETERS
    return {
        "module": program.__name__,
        "about": (program.__doc__ or "").strip(),
        "runs_a_method": any(issubclass(group, MethodOptions) for group in shared.values()),
        "sections": {title: _section(group, groups) for title, group in shared.items()},
    }


def _method(name: str, groups: dict[str, type]) -> dict[str, Any]:
    method = available()[name]
    training = {external(key): value for key, value in method.training.items()}
    texts = {"does": first_line(method), "about": about(name, method)}
    return {**_section(method, groups), **texts, "training": training, "presets": list(method.presets)}


def _section(group: type, groups: dict[str, type]) -> dict[str, Any]:
    """Return a group as the class that declares its knobs, and the defaults that differ from the class's."""
    origin = next(each for each in reversed(group.__mro__) if each.__name__ == group.__name__)
    if groups.setdefault(origin.__name__, origin) is not origin:
        raise TypeError(f"two groups of knobs are called {origin.__name__}")
    declared = {each.name: each.default for each in parameters(origin)}
    changed = {each.name: each.default for each in parameters(group) if each.default != declared[each.name]}
    return {"group": origin.__name__, "defaults": changed}
