"""The errors that callers are meant to catch, and the one way of telling them what is no error: a note."""

from __future__ import annotations

import errno
import warnings
from collections.abc import Iterable, Iterator
from difflib import get_close_matches

_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_DISK_FULL_TEXTS = ("No space left on device", "database or disk is full")  # safetensors and SQLite raise no OSError


class InputError(ValueError):
    """A request that cannot be served; its message is one line with the parameter, its value and what is allowed."""


class NonFiniteError(ArithmeticError):
    """A loss or gradient was not finite; the weights are those after the last good step."""


class LostProcessError(RuntimeError):
    """One of several processes that train a model together ended, or trains another model; the same command resumes."""


class Stopped(Exception):
    """The run was asked to stop (SIGTERM); it wrote a checkpoint, so the same command resumes it."""


class Note(UserWarning):
    """Something that the user should know and that stops nothing; a notebook shows it as a warning, a command as one line."""


def note(text: str, *, stacklevel: int = 2) -> None:
    """Tell the user something that stops nothing, in one line; stacklevel as of `warnings.warn`, from the caller's caller on."""
    warnings.warn(text, Note, stacklevel=stacklevel + 1)


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception, its cause, the cause of that, and so on; each once, as Python lets causes run in a circle."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        yield error
        seen.append(error)
        error = error.__cause__ or error.__context__


def disk_failure(error: BaseException) -> str | None:
    """Return in one line how the disk failed: it is full, or refuses to be written; None for an error of another cause."""
    for each in chain(error):
        if getattr(each, "errno", None) in _DISK_FULL or any(text in str(each) for text in _DISK_FULL_TEXTS):
            return f"the disk is full ({each}); free some space, the same command resumes"
    if isinstance(error, OSError) and error.errno in _NOT_WRITABLE:
        return f"{error.filename} cannot be written: {error.strerror}"
    return None


def unknown(kind: str, name: object, known: Iterable[object]) -> InputError:
    """Return the error for an unknown name; its message lists the known names and suggests the nearest."""
    names = [str(each) for each in known]
    nearest = get_close_matches(str(name), names, n=1)
    hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
    return InputError(f"unknown {kind} {str(name)!r}{hint}; known: {', '.join(names) or 'none'}")
