"""The two ways a request ends early: the caller asked for something impossible, or a running job was told to stop."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from difflib import get_close_matches


class InputError(ValueError):
    """A request that cannot be served; its message is one line that names the parameter, the value and what is allowed."""


class NonFiniteError(ArithmeticError):
    """Training met a loss or a gradient that is not finite; the weights of the last good step are untouched."""


class Stopped(Exception):
    """The job was told to stop (SIGTERM); its checkpoint is whole, so the same command resumes it."""


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception, what it was raised from, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def unknown(kind: str, name: object, known: Iterable[object]) -> InputError:
    """Return the error for a name nobody knows, with the known ones and the nearest of them."""
    names = [str(each) for each in known]
    near = get_close_matches(str(name), names, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return InputError(f"unknown {kind} {str(name)!r}{hint}; known: {', '.join(names) or 'none'}")
