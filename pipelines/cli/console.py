"""The command `safemax`, and the first lines of every entry point: help, checks and completion that need no torch.

safemax unlearn --method=salun --forget=3        the same as python -m pipelines.unlearn
safemax salun --forget=3                         each method is a command too, as in MLproject
eval "$(safemax completion bash)"                completion; zsh and fish likewise
"""

from __future__ import annotations

import os
import shutil
import textwrap
import tomllib
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from typing import NoReturn

from pipelines import ROOT, hear_libraries
from pipelines.cli import config_file
from pipelines.cli.index import Command, Sections, commands
from pipelines.cli.parameters import UsageError, excerpt, parameters
from pipelines.cli.parser import NOT_GIVEN, Option, help_text, main, options, parse, read_all
from safemax.errors import unknown
from safemax.knobs import check, knob

TITLE = "every command"
_VERBOSITIES = ("quiet", "normal", "verbose")
_LOGGING = {"quiet": "ERROR", "verbose": "INFO"}
_USAGE = """\
usage: safemax COMMAND [--parameter=value ...]

Make a class-conditional diffusion model forget a class, measure what it cost, and register the result in MLflow.
`safemax COMMAND --help` lists the parameters of a command. `eval "$(safemax completion bash)"` completes them; zsh and fish
likewise. `safemax --version` prints the version."""


@dataclass(frozen=True)
class ConsoleOptions:
    """What every command takes besides its own parameters."""

    config: str = knob("none", "YAML file with a line NAME: VALUE for each parameter; a value given here wins over it")
    verbosity: str = knob(
        "normal", "quiet shows no progress bars; verbose also shows what libraries log", choices=_VERBOSITIES
    )

    def __post_init__(self) -> None:
        check(self)

    def apply(self) -> None:
        """Set the environment that this process's libraries and its children read; before they are imported."""
        if self.verbosity != "verbose":
            warnings.formatwarning = _brief
        if self.verbosity != "normal":
            hear_libraries(_LOGGING[self.verbosity])
        if self.verbosity == "quiet":
            os.environ["TQDM_DISABLE"] = "1"


def _brief(message: Warning | str, category: object, filename: str, lineno: int, line: str | None = None) -> str:
    """Return a warning in one line, without the place in the code that Python adds."""
    return f"warning: {' '.join(str(message).split())}\n"


def run(name: str) -> NoReturn:
    """Carry out a command by this process's arguments, as `python -m` its module does, and exit."""
    command = commands()[name]
    main(lambda argv: carry_out(command, f"python -m {command.module}", argv))


def safemax() -> NoReturn:
    """Carry out the command that the first argument names, and exit: the console script `safemax`."""
    if "_ARGCOMPLETE" in os.environ:
        from pipelines.cli import completion

        completion.answer(commands(), parameters(ConsoleOptions))
    main(_dispatch)


def carry_out(command: Command, usage: str, argv: Sequence[str]) -> None:
    """Print a command's help where it is asked for; else check the arguments by the index of knobs and run the command.

    Args:
        command: the command.
        usage: how the user called it.
        argv: its arguments.

    Raises:
        UsageError: before anything heavy is imported, except for values that do not fit together.
    """
    ours = {each.name for each in parameters(ConsoleOptions)}
    given = list(options(argv))
    console: ConsoleOptions = parse(
        usage, "", {TITLE: ConsoleOptions}, _argv(each for each in given if each[0] in ours)
    )[TITLE]
    theirs = [*command.fixed.items(), *(each for each in given if each[0] not in ours | {"help"})]
    from_file = [] if console.config == "none" else config_file.read(console.config)
    merged = _argv(config_file.merge(theirs, from_file, NOT_GIVEN))
    about, sections = command.resolve(merged)
    if "help" in dict(given):
        print(help_text(usage, about, _shown(command, sections)))
        return
    _check(theirs, from_file, sections, console.config)
    console.apply()
    module = import_module(command.module)
    getattr(module, command.module.rpartition(".")[2])(merged)


def _argv(given: Iterable[Option]) -> list[str]:
    return [f"--{name}" if text is None else f"--{name}={text}" for name, text in given]


def _shown(command: Command, sections: Sections) -> Sections:
    own = {title: [each for each in section if each.name not in command.fixed] for title, section in sections.items()}
    return {title: section for title, section in {**own, TITLE: parameters(ConsoleOptions)}.items() if section}


def _check(given: list[Option], from_file: list[Option], sections: Sections, path: str) -> None:
    known = {each.name: each for section in sections.values() for each in section}
    read_all(known, given)
    try:
        read_all(known, from_file)
    except UsageError as error:
        raise UsageError(f"config = {excerpt(path)}: {error}") from error


def _dispatch(argv: Sequence[str]) -> None:
    name, rest = (argv[0], argv[1:]) if argv else ("--help", [])
    if name in ("--help", "-h", "help"):
        print(_overview())
    elif name == "--version":
        print(f"safemax {_version()}")
    elif name == "completion":
        print(_completion(rest))
    elif name in commands():
        carry_out(commands()[name], f"safemax {name}", rest)
    else:
        raise UsageError(str(unknown("command", excerpt(name), [*commands(), "completion"])))


def _overview() -> str:
    programs = [command for command in commands().values() if not command.fixed]
    methods = [command for command in commands().values() if command.fixed]
    lines = [_line(each.name, each.about.splitlines()[0]) for each in programs]
    corrections = [_line(each.name, each.methods[each.name].does) for each in methods]
    return "\n".join([_USAGE, "", "commands", *lines, "", "corrections, one for each method", *corrections])


def _line(name: str, does: str) -> str:
    indent = " " * (max(map(len, commands())) + 4)
    width = min(shutil.get_terminal_size().columns, 120)
    return textwrap.fill(does, width, initial_indent=f"  {name}".ljust(len(indent)), subsequent_indent=indent)


def _completion(words: Sequence[str]) -> str:
    from pipelines.cli import completion

    shell = words[0] if words else "bash"
    if shell not in completion.SHELLS:
        raise UsageError(str(unknown("shell", excerpt(shell), completion.SHELLS)))
    return completion.script(shell)


def _version() -> str:
    project = ROOT / "pyproject.toml"
    if project.exists():
        return str(tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"])
    return version("safemax")
