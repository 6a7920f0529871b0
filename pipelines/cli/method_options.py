"""The parameters of a pipeline that runs one method: `method` chooses it, `preset` chooses named settings of it."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipelines.cli.parameters import UsageError, Value, to_text, with_defaults
from pipelines.cli.parser import Arguments, choose, parse, text_of
from safemax.errors import InputError
from safemax.knobs import check, external, knob, knobs
from safemax.methods import available, preset_of
from safemax.training.method import Method


@dataclass(frozen=True)
class MethodOptions:
    """The method."""

    method: str = knob("safemax", "unlearning method; each has parameters of its own", choices=tuple(available()))
    preset: str = knob("none", "named settings of the method, such as paper; a value that you give wins over them")

    def __post_init__(self) -> None:
        check(self)


def parse_for_method(
    prog: str,
    doc: str,
    shared: Mapping[str, type],
    argv: Sequence[str],
    settings: Mapping[str, Mapping[str, Value]] | None = None,
) -> tuple[str, Arguments]:
    """Return the name of the method that argv chooses, and the parameters: the shared groups and the method's own.

    Args:
        prog: as in `parse`.
        doc: as in `parse`.
        shared: the pipeline's groups by title, MethodOptions among them.
        argv: as in `parse`.
        settings: as in `parse`; a preset's values win over them.

    Raises:
        UsageError: as in `parse`, or an unknown method or preset.
    """
    name, method = choose(argv, "method", {name: (name, method) for name, method in available().items()}, "safemax")
    groups = for_method(shared, name, method)
    preset = preset_settings(name, text_of(argv, "preset") or "none")
    return name, parse(
        prog, f"{doc.strip()}\n\n{about(name, method)}", groups, argv, {"preset": preset, **(settings or {})}
    )


def for_method(shared: Mapping[str, type], name: str, method: type[Method]) -> dict[str, type]:
    """Return the groups of a pipeline that runs one method: the shared ones with its training defaults, and its own."""
    own = dict(method.training)
    groups = {}
    for title, group in shared.items():
        defaults = {key: own.pop(key) for key in knobs(group) if key in own}
        groups[title] = with_defaults(group, **defaults) if defaults else group
    if own:
        raise TypeError(f"{method.__name__}.training names {', '.join(own)}, which no group of knobs has")
    return {**groups, name: method}


def first_line(method: type[Method]) -> str:
    """Return what a method does, in the words that begin its file."""
    return (sys.modules[method.__module__].__doc__ or "").split("\n")[0]


def about(name: str, method: type[Method]) -> str:
    """Return what the help says of the chosen method: what it does, its source and what its presets set."""
    lines = [f"--method={name}, shown here: {first_line(method)} Source: {method.paper}."]
    for preset in method.presets:
        settings = preset_settings(name, preset).items()
        lines.append(f"  --preset={preset} sets " + ", ".join(f"{key}={to_text(value)}" for key, value in settings))
    return "\n".join(lines)


def preset_settings(name: str, preset: str) -> dict[str, Value]:
    """Return what a preset of a method sets, knobs and training settings, by the names that users write.

    Args:
        name: of the method.
        preset: one of the method's, or none.

    Raises:
        UsageError: the method has no such preset.
    """
    try:
        own, training = preset_of(name, "" if preset == "none" else preset)
    except InputError as error:
        raise UsageError(str(error)) from error
    return {external(field): value for field, value in {**own, **training}.items()}
