"""Progress bars: all are made here, so that TQDM_DISABLE=1, which verbosity=quiet sets, silences each of them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm as Bar

__all__ = ["Bar", "bar"]


def bar(rows: Iterable[Any] | None = None, *, shown: bool = True, **options: Any) -> Bar:
    """Return a bar on stderr, which iterates over rows, or which its owner moves.

    Args:
        rows: what to iterate over, if anything.
        shown: whether to show it; TQDM_DISABLE=1 wins, which tqdm itself reads only where no one decides.
        options: further ones of tqdm, such as total, desc and unit.
    """
    return Bar(rows, disable=not shown or os.environ.get("TQDM_DISABLE", "0") not in ("", "0"), **options)
