"""One digest of all of our code: workers on other machines must run the driver's."""

from __future__ import annotations

import hashlib

import torch

from pipelines import ROOT

_PACKAGES = ("safemax", "pipelines", "hpo")


def tree_digest() -> str:
    """Return the sha256 (hex) of every Python file of our packages, and of torch's version."""
    sha = hashlib.sha256(torch.__version__.encode())
    for path in sorted(path for package in _PACKAGES for path in (ROOT / package).rglob("*.py")):
        sha.update(f"\n{path.relative_to(ROOT)}\n".encode())
        sha.update(path.read_bytes())
    return sha.hexdigest()
