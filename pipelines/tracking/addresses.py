"""Addresses of stores and databases: what may be shown of them, and what a link to them needs."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

# Up to the last @, since a password that is not percent-encoded may hold @ and /.
_LOGIN = re.compile(r"(://[^:/@\s]*):\S*@")
_QUERY = re.compile(r"([?&](?:ssl)?password=)[^&\s'\"]*", re.IGNORECASE)


def without_password(text: str) -> str:
    """Return text with the password of each address in it masked; for whatever is printed, logged, tagged or stored.

    >>> without_password("python --storage=postgresql://ana:secret@host/studies")
    'python --storage=postgresql://ana:***@host/studies'
    >>> without_password("postgresql://host/studies?user=ana&password=secret")
    'postgresql://host/studies?user=ana&password=***'
    """
    return _QUERY.sub(r"\1***", _LOGIN.sub(r"\1:***@", text))


def without_login(address: str) -> str:
    """Return the address of a server as a browser opens it: no user, no password, no slash at the end.

    >>> without_login("https://ana:secret@mlflow.example.org/")
    'https://mlflow.example.org'
    """
    parts = urlsplit(address)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl().rstrip("/")
