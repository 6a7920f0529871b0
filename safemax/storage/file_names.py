"""Names from outside (of classes, studies, data sets) as names of files."""

from __future__ import annotations

import hashlib

_LONGEST = 180  # bytes; file systems allow 255, of which suffixes and temporary names need some


def file_name(text: str, *, letters_only: bool = False) -> str:
    """Return a name for a file or folder that leads nowhere else: no slash, no leading dot, nothing unprintable, not too long.

    Text that already is such a name is returned unchanged. In any other, each bad character becomes -, and 8 hex digits of its
    sha256 follow, so that two texts never share a name.

    Args:
        text: anything.
        letters_only: whether everything but letters and digits is a bad character, as in names that become parts of URLs.

    >>> file_name("sports car")
    'sports car'
    >>> file_name("../../x")
    '-..-x-9cdf6a50'
    """
    safe = "".join(each if _is_allowed(each, letters_only) else "-" for each in text).lstrip(".")
    short = safe.encode()[:_LONGEST].decode(errors="ignore")
    if text and short == text:
        return text
    return f"{short}-{hashlib.sha256(text.encode(errors='surrogatepass')).hexdigest()[:8]}"


def _is_allowed(letter: str, letters_only: bool) -> bool:
    return letter.isalnum() or (not letters_only and letter.isprintable() and letter not in "/\\")
