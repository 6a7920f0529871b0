"""A strict command line made of knobs: one line for each error, a help text that teaches, an exit status to rely on.

argparse would add only the splitting at `=`: it keeps the last of duplicates, reads `--name -x` as two options, and its
messages neither name the range nor fit one line.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn, TextIO, TypeVar

from pipelines.cli.parameters import Parameter, UsageError, Value, excerpt, parameters, to_text
from pipelines.engine import notes, signals
from safemax.errors import InputError, LostProcessError, NonFiniteError, Stopped, disk_failure, unknown

Chosen = TypeVar("Chosen")
Option = tuple[str, str | None]
"""A parameter's name as the user gave it, with underscores, and its text, None where there is none."""
PLAN = "plan"  # decides nothing that a run could be repeated from
NOT_GIVEN = "auto"
"""The text that stands for no value, MLproject's default; not for a parameter that has it among its choices."""

_READING = "Each parameter is shown with its default; --PARAMETER=auto leaves a parameter at its default or its preset's value."


class Arguments(dict[str, Any]):
    """What a command line says: an instance of each group's dataclass by title, and where each value comes from.

    A value's source is `given` (by the user), the name of the settings that set it (`preset`), or `default`.

    Args:
        groups: dataclasses of knobs by title.
        given: what the user gave, by the names that users write.
        settings: values by source, the first source that has one wins; what the user gave wins over all.

    Raises:
        UsageError: values that do not fit together.
        TypeError: settings of a parameter that there is not, which is a fault of the program.

    Attributes:
        given: the names of the parameters that the user gave, also where the value equals the default.
    """

    def __init__(
        self, groups: Mapping[str, type], given: Mapping[str, Value], settings: Mapping[str, Mapping[str, Value]]
    ) -> None:
        self._known = _by_name(groups)
        self._set = {name: (value, "given") for name, value in given.items()}
        self.given = frozenset(given)
        for source, values in settings.items():
            for name, value in values.items():
                if name not in self._known:
                    raise TypeError(f"{source} sets {name}, which is not a parameter")
                self._set.setdefault(name, (value, source))
        values = {name: value for name, (value, _) in self._set.items()}
        super().__init__({title: _filled(group, values) for title, group in groups.items()})

    def record(self, **resolved: Value) -> dict[str, dict[str, Value]]:
        """Return every parameter's value and source, as JSON: {"lr": {"value": 0.001, "source": "given"}}.

        Args:
            resolved: values that say what the user named, such as a version's number for an alias, which may move.
        """
        pairs = {
            name: self._set.get(name, (each.default, "default")) for name, each in self._known.items() if name != PLAN
        }
        return {name: {"value": resolved.get(name, value), "source": source} for name, (value, source) in pairs.items()}


def parse(
    prog: str,
    doc: str,
    groups: Mapping[str, type],
    argv: Sequence[str],
    settings: Mapping[str, Mapping[str, Value]] | None = None,
) -> Arguments:
    """Return an instance of each group's dataclass, filled from `--name=value` or `--name value`, settings and defaults.

    Args:
        prog: how the program is called, for the first line of the help.
        doc: what it does, for the help.
        groups: dataclasses of knobs by the title of their section in the help.
        argv: the arguments without the program's name; `--help` prints the help and exits with status 0. The value `auto`
            means "not given": MLproject passes it for a declared parameter that the user left alone.
        settings: values by source, such as a preset's, for parameters that the user did not give.

    Raises:
        UsageError: an unknown, repeated, empty or disallowed parameter; the first one found.
        ValueError: two groups share a parameter's name, which is a fault of the program.
    """
    known = _by_name(groups)
    given = list(options(argv))
    if "help" in dict(given):
        print(help_text(prog, doc, {title: parameters(group) for title, group in groups.items()}))
        raise SystemExit(0)
    return Arguments(groups, read_all(known, given), settings or {})


def text_of(argv: Sequence[str], name: str) -> str | None:
    """Return the text that argv gives to one parameter, read ahead of `parse`; None where it gives none."""
    texts = [text for option, text in options(argv) if option == name]
    if len(texts) > 1:
        raise _repeated(name)
    return texts[0] if texts and texts[0] != NOT_GIVEN else None


def choose(argv: Sequence[str], name: str, known: Mapping[str, Chosen], default: str) -> Chosen:
    """Return what one parameter selects from known, read ahead of `parse` because it decides which groups there are."""
    choice = text_of(argv, name) or default
    if choice not in known:
        raise UsageError(str(unknown(name, excerpt(choice), known)))
    return known[choice]


def options(argv: Sequence[str]) -> Iterator[Option]:
    """Yield each option; UsageError for a word that is none."""
    rest = list(reversed(argv))
    while rest:
        token = rest.pop()
        if token == "-h":
            token = "--help"
        if not token.startswith("--"):
            raise UsageError(f"{excerpt(token)} is not a parameter; write --name=value")
        name, equals, text = token[2:].partition("=")
        if not equals and rest and not rest[-1].startswith("--"):
            equals, text = " ", rest.pop()
        yield name.replace("-", "_"), text if equals else None


def read_all(known: Mapping[str, Parameter], texts: Iterable[Option]) -> dict[str, Value]:
    """Return the values given, by name; UsageError for the first option that is unknown, repeated or not allowed."""
    seen: set[str] = set()
    given: dict[str, Value] = {}
    for name, text in texts:
        if name not in known:
            raise UsageError(str(unknown("parameter", excerpt(name), known)))
        if name in seen:
            raise _repeated(name)
        seen.add(name)
        if text != NOT_GIVEN or NOT_GIVEN in known[name].about.choices or known[name].about.takes_auto:
            given[name] = known[name].read(text)
    return given


def help_text(usage: str, about: str, sections: Mapping[str, Iterable[Parameter]]) -> str:
    """Return a program's help: how it is called, what it does, and its parameters by the title of their section."""
    parts = [f"usage: {usage} [--parameter=value ...]", about.strip(), _READING]
    parts += ["\n".join([title, *map(_help_for, section)]) for title, section in sections.items()]
    return "\n\n".join(parts)


def main(entry: Callable[[Sequence[str]], object]) -> NoReturn:
    """Run an entry point on the command line's arguments and exit: with 0, or with one line on stderr and a status.

    Status 2: a parameter. 1: any other input, a loss that is not finite, a full disk, a folder that cannot be written, a
    tracking store that does not answer or denies access. 143: SIGTERM. 130: Ctrl-C. 129: SIGHUP. Every other exception is a
    bug of this program and keeps its traceback.
    """
    signals.end_on_signals()
    notes.show_as_lines()
    try:
        status = _status(entry, sys.argv[1:])
    finally:
        _flush()
    sys.exit(status)


def _flush() -> None:
    """Write all output, unless its reader has gone: `head` has seen enough. Left to Python, that would end in a traceback."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            _discard(stream)


def _discard(stream: TextIO) -> None:
    """Send what is still buffered, which Python would flush at its exit, to nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _status(entry: Callable[[Sequence[str]], object], argv: Sequence[str]) -> int:
    try:
        entry(argv)
    except InputError as error:
        _name_refused_run(str(error))
        return _say(f"error: {error}", 2 if isinstance(error, UsageError) else 1)
    except Stopped:
        return _say("stopped: the same command resumes", signals.status_after(signal.SIGTERM))
    except KeyboardInterrupt:
        return _say(
            "interrupted: the same command resumes from the last checkpoint", signals.status_after(signal.SIGINT)
        )
    except (LostProcessError, NonFiniteError) as error:
        return _say(f"error: {error}", 1)
    except BrokenPipeError:  # the reader of what is printed, such as `head`, has seen enough
        _discard(sys.stdout)
        return 0
    except Exception as error:
        reason = _outside(error)
        if reason is None:
            raise
        return _say(f"error: {reason}", 1)
    return 0


def _outside(error: Exception) -> str | None:
    """Return what failed outside this program (disk, permissions, tracking store), or None for a bug of this program."""
    failure = disk_failure(error)
    if failure is not None:
        return failure
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which this file does not import: it takes seconds
        reason = str(error).splitlines()[0]
        return f"the GPU is out of memory ({reason}); a smaller batch_size, or a larger accumulate, needs less"
    from pipelines import tracking  # imports mlflow, which an error in a parameter need not wait for

    return tracking.refusal(error)


def _name_refused_run(reason: str) -> None:
    """Write the reason on the run that `mlflow run` opened for this process, if the process has not joined it."""
    if "MLFLOW_RUN_ID" in os.environ and not signals.is_follower_rank():
        from pipelines import tracking

        tracking.describe_refused(reason)


def _say(line: str, status: int) -> int:
    print(" ".join(line.split()), file=sys.stderr, flush=True)
    return status


def _repeated(name: str) -> UsageError:
    return UsageError(f"{name} is given twice; each parameter has one value")


def _by_name(groups: Mapping[str, type]) -> dict[str, Parameter]:
    known: dict[str, Parameter] = {}
    for parameter in (each for group in groups.values() for each in parameters(group)):
        if parameter.name in known:
            raise ValueError(f"two groups of knobs share the name {parameter.name}")
        known[parameter.name] = parameter
    return known


def _filled(group: type, given: Mapping[str, Value]) -> object:
    values = {each.field: given[each.name] for each in parameters(group) if each.name in given}
    try:
        return group(**values)
    except InputError as error:
        raise UsageError(str(error)) from error


def _help_for(parameter: Parameter) -> str:
    width = min(shutil.get_terminal_size().columns, 100)
    free_text = parameter.kind is str and not parameter.about.choices
    meaning = parameter.about.doc.rstrip(".") + ("" if free_text else f": {parameter.allowed}")
    indent = " " * 6
    wrapped = textwrap.fill(meaning, width, initial_indent=indent, subsequent_indent=indent)
    return f"  --{parameter.name}={to_text(parameter.default)}\n{wrapped}"
