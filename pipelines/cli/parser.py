"""A strict command line made of knobs: one line for what it refuses, a help that teaches, an exit status that is true.

argparse would add only the splitting at `=`: it keeps the last of duplicates, reads `--name -x` as two options, and its
messages neither name the range nor fit one line.
"""

from __future__ import annotations

import errno
import shutil
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from pipelines.cli.parameters import Parameter, UsageError, Value, parameters, shown, written
from safemax.errors import InputError, NonFiniteError, Stopped, chain, unknown

Chosen = TypeVar("Chosen")

_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_DISK_FULL_TEXTS = ("No space left on device", "database or disk is full")  # safetensors and SQLite raise no OSError


def parse(prog: str, doc: str, groups: Mapping[str, type], argv: Sequence[str]) -> dict[str, Any]:
    """Return an instance of each group's dataclass, filled from `--name=value` or `--name value`, else by the defaults.

    Args:
        prog: how the program is called, for the first line of the help.
        doc: what it does, for the help.
        groups: dataclasses of knobs by the title of their section in the help.
        argv: the arguments without the program's name; `--help` prints the help and exits with status 0.

    Raises:
        UsageError: an unknown, repeated, empty or disallowed parameter; the first one found.
        ValueError: two groups share a parameter's name, which is a fault of the program.
    """
    known = _by_name(groups)
    options = list(_options(argv))
    if "help" in dict(options):
        print(_help(prog, doc, groups))
        raise SystemExit(0)
    given: dict[str, Value] = {}
    for name, text in options:
        if name not in known:
            raise UsageError(str(unknown("parameter", shown(name), known)))
        if name in given:
            raise UsageError(f"{name} is given twice; each parameter has one value")
        given[name] = known[name].read(text)
    return {title: _filled(group, given) for title, group in groups.items()}


def choose(argv: Sequence[str], name: str, known: Mapping[str, Chosen], default: str) -> Chosen:
    """Return what one parameter selects from known, read ahead of parse because it decides which groups there are."""
    chosen = dict(_options(argv)).get(name, default) or ""
    if chosen not in known:
        raise UsageError(str(unknown(name, shown(chosen), known)))
    return known[chosen]


def main(entry: Callable[[Sequence[str]], object]) -> NoReturn:
    """Run an entry point on the command line's arguments and exit: with 0, or with one line on stderr and a status.

    2 for a parameter, 1 for any other input, for a loss that is not finite, a full disk, a place that takes no files and a
    tracking store that is away or refuses, 143 when told to stop (SIGTERM), 130 for Ctrl-C. Every other exception is a fault
    of ours and keeps its traceback.
    """
    sys.exit(_status(entry, sys.argv[1:]))


def _status(entry: Callable[[Sequence[str]], object], argv: Sequence[str]) -> int:
    try:
        entry(argv)
    except InputError as error:
        return _say(f"error: {error}", 2 if isinstance(error, UsageError) else 1)
    except Stopped:
        return _say("stopped: the checkpoint is whole, the same command resumes", 128 + signal.SIGTERM)
    except KeyboardInterrupt:
        return _say("interrupted: the same command resumes from the last checkpoint", 128 + signal.SIGINT)
    except NonFiniteError as error:
        return _say(f"error: {error}", 1)
    except Exception as error:
        reason = _outside(error)
        if reason is None:
            raise
        return _say(f"error: {reason}", 1)
    return 0


def _outside(error: Exception) -> str | None:
    """Return what is amiss outside this program: a full disk, a place that takes no files, a store; None where nothing is."""
    full = _disk_full(error)
    if full is not None:
        return f"the disk is full ({full}); free some space, the same command resumes"
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which this file does not import: it takes seconds
        reason = str(error).splitlines()[0]
        return f"the GPU is out of memory ({reason}); a smaller batch_size, or a larger accumulate, needs less"
    if isinstance(error, OSError) and error.errno in _NOT_WRITABLE:
        return f"{error.filename} cannot be written: {error.strerror}"
    from pipelines import tracking  # after the fault, when the time that the import takes matters no more

    return tracking.refusal(error)


def _say(line: str, status: int) -> int:
    print(" ".join(line.split()), file=sys.stderr, flush=True)
    return status


def _disk_full(error: BaseException | None) -> BaseException | None:
    """Return the exception of the chain that reports a full disk, None where none does."""
    for each in chain(error):
        if getattr(each, "errno", None) in _DISK_FULL or any(text in str(each) for text in _DISK_FULL_TEXTS):
            return each
    return None


def _by_name(groups: Mapping[str, type]) -> dict[str, Parameter]:
    known: dict[str, Parameter] = {}
    for parameter in (each for group in groups.values() for each in parameters(group)):
        if parameter.name in known:
            raise ValueError(f"two groups of knobs share the name {parameter.name}")
        known[parameter.name] = parameter
    return known


def _options(argv: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Yield each option's name, with underscores, and its text, None where there is none."""
    waiting = list(reversed(argv))
    while waiting:
        token = waiting.pop()
        if token == "-h":
            token = "--help"
        if not token.startswith("--"):
            raise UsageError(f"{shown(token)} is not a parameter; write --name=value")
        name, equals, text = token[2:].partition("=")
        if not equals and waiting and not waiting[-1].startswith("--"):
            equals, text = " ", waiting.pop()
        yield name.replace("-", "_"), text if equals else None


def _filled(group: type, given: Mapping[str, Value]) -> object:
    values = {each.field: given[each.name] for each in parameters(group) if each.name in given}
    try:
        return group(**values)
    except InputError as error:
        raise UsageError(str(error)) from error


def _help(prog: str, doc: str, groups: Mapping[str, type]) -> str:
    sections = [f"usage: {prog} [--parameter=value ...]", doc.strip()]
    sections += ["\n".join([title, *map(_help_for, parameters(group))]) for title, group in groups.items()]
    return "\n\n".join(sections)


def _help_for(parameter: Parameter) -> str:
    width = min(shutil.get_terminal_size().columns, 100)
    meaning = f"{parameter.about.doc.rstrip('.')}: {parameter.allowed}"
    indent = " " * 6
    wrapped = textwrap.fill(meaning, width, initial_indent=indent, subsequent_indent=indent)
    return f"  --{parameter.name}={written(parameter.default)}\n{wrapped}"
