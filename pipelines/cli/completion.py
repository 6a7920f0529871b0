"""Completion in the shell by argcomplete: names of commands and parameters, and the values that a parameter allows."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping

import argcomplete

from pipelines.cli.index import Command, Sections
from pipelines.cli.parameters import Parameter, UsageError

SHELLS = ("bash", "zsh", "fish")


def script(shell: str) -> str:
    """Return the code that makes a shell complete `safemax`; one of SHELLS."""
    return str(argcomplete.shellcode(["safemax"], shell=shell))


def answer(commands: Mapping[str, Command], more: list[Parameter]) -> None:
    """Answer a shell that asks for completion, and end the process; return at once where none asks.

    Args:
        commands: all, by name.
        more: parameters that every command takes.
    """
    words = os.environ.get("COMP_LINE", "").split()[1:]
    argcomplete.autocomplete(_parser(commands, more, words))


def _parser(commands: Mapping[str, Command], more: list[Parameter], words: list[str]) -> argparse.ArgumentParser:
    """Return a parser of the commands' names; the command that the line has already named has its parameters too."""
    parser = argparse.ArgumentParser("safemax")
    parser.add_argument("--version", action="store_true")
    children = parser.add_subparsers()
    for name, command in commands.items():
        child = children.add_parser(name)
        if words[:1] == [name]:
            sections = _sections(command, words[1:])
            for parameter in [*(each for section in sections.values() for each in section), *more]:
                _add(child, parameter)
    children.add_parser("completion").add_argument("shell", choices=SHELLS)
    return parser


def _sections(command: Command, words: list[str]) -> Sections:
    try:
        chosen = [f"--{name}={value}" for name, value in command.fixed.items()]
        return command.resolve([*chosen, *(word for word in words if word.startswith(("--method=", "--preset=")))])[1]
    except UsageError:  # a method that is being written
        return command.sections


def _add(parser: argparse.ArgumentParser, parameter: Parameter) -> None:
    choices = ("true", "false") if parameter.kind is bool else parameter.about.choices
    about = parameter.about.doc.replace("%", "%%")  # argparse reads % as a placeholder
    action = parser.add_argument(f"--{parameter.name}", choices=choices or None, help=about)
    if not choices and parameter.kind is not str:
        action.completer = lambda **_: ()  # type: ignore[attr-defined]  # argcomplete reads it; files are its default
