"""Addresses of stores and databases: what may be shown of them, and what a link to them needs."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

_START = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_SECRET = re.compile(
    r"((?<![A-Za-z])(?:[a-z_-]*password|passwd|pwd|[a-z_-]*token|[a-z_-]*secret|api[_-]?key)=)[^&\s'\"]*", re.IGNORECASE
)


def without_password(text: str) -> str:
    """Return text with the passwords in it masked; for whatever is printed, logged, tagged or stored.

    That is: the password of each address, also one that is not percent-encoded and holds @, / or spaces; a user name alone
    before a web address, which is a token; and the values of password=, token=, secret= and api_key=. Where the end of a
    login is in doubt, more is masked rather than less.

    >>> without_password("python --storage=postgresql://ana:secret@host/studies")
    'python --storage=postgresql://ana:***@host/studies'
    >>> without_password("postgresql://host/studies?user=ana&password=secret")
    'postgresql://host/studies?user=ana&password=***'
    """
    starts = list(_START.finditer(text))
    bounds = [*(each.start() for each in starts), len(text)]
    shown = text[: bounds[0]]
    for start, end in zip(starts, bounds[1:], strict=True):
        rest = text[start.end() : end]
        length = _login_length(rest)
        shown += start[0] + _masked(start[1].lower(), rest[:length]) + rest[length:]
    return _SECRET.sub(r"\1***", shown)


def without_login(address: str) -> str:
    """Return the address of a server as a browser opens it: no user, password or query, no slash at the end.

    >>> without_login("https://ana:secret@mlflow.example.org/")
    'https://mlflow.example.org'
    """
    scheme, separator, rest = address.partition("://")
    parts = urlsplit(scheme + separator + rest[_login_length(rest) :])
    return parts._replace(query="", fragment="").geturl().rstrip("/")


def _login_length(rest: str) -> int:
    """Return how many characters after :// are the login and its @; a password may hold @, and / or spaces."""
    line = rest.partition("\n")[0]
    word, before_slash = re.split(r"\s", line, maxsplit=1)[0], re.split("[/?#]", line, maxsplit=1)[0]
    if ":" not in before_slash:  # no password, so that @ after a slash belongs to a path
        return before_slash.rfind("@") + 1
    return max(word.rfind("@"), before_slash.rfind("@")) + 1


def _masked(scheme: str, login: str) -> str:
    if not login:
        return ""
    user, colon, _ = login[:-1].partition(":")
    if colon:
        return f"{user}:***@"
    return "***@" if scheme in ("http", "https") else login
