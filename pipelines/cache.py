"""List what the cache keeps: how large it is, when it was last used, and what it is for; free what nobody needs.

    safemax cache                                              lists, and changes nothing
    safemax cache --free=unused --days=30                      says what that would free
    safemax cache --free=unused --days=30 --dry_run=false      frees it

`unused` is everything that can be made again, and what killed processes left. Checkpoints of trainings under way and studies
cannot be made again: they are freed by their own names alone, such as free=checkpoints. Free nothing that a running command uses.
"""

from __future__ import annotations

if __name__ == "__main__":  # first: help and refusals need none of the imports below
    from pipelines.cli import console

    console.run("cache")

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from pipelines import tracking
from pipelines.cli.parser import parse
from safemax.errors import unknown
from safemax.knobs import check, knob
from safemax.reports.numbers import counted
from safemax.storage import cache as storage
from safemax.storage import cache_contents
from safemax.storage.cache_contents import PURPOSES, UNKNOWN, Piece

ALL_UNUSED = "unused"


@dataclass(frozen=True)
class CacheOptions:
    """What is freed."""

    free: str = knob("none", f"none, {ALL_UNUSED}, or kinds separated by commas, as the list names them")
    days: float = knob(30.0, "days since it was last used; 0 frees what is in use too", bounds=(0, 100_000))
    dry_run: bool = knob(True, "say what would be freed, and free nothing")

    def __post_init__(self) -> None:
        check(self)
        for name in self.kinds:
            if name not in PURPOSES:
                raise unknown("kind", name, ["none", ALL_UNUSED, *PURPOSES])

    @property
    def kinds(self) -> list[str]:
        """The kinds to free, where the option names kinds."""
        return [] if self.free in ("none", ALL_UNUSED) else [each.strip() for each in self.free.split(",")]

    def chosen(self, every: list[Piece]) -> list[Piece]:
        """Return the pieces to free."""
        if self.free == ALL_UNUSED:
            return cache_contents.unused(every, self.days)
        return [each for each in every if each.kind in self.kinds and each.days >= self.days]


PARAMETERS: dict[str, type] = {"cache": CacheOptions}


def cache(argv: Sequence[str]) -> None:
    """List and free by the command line's parameters."""
    options: CacheOptions = parse("python -m pipelines.cache", __doc__ or "", PARAMETERS, argv)["cache"]
    every = cache_contents.pieces()
    lines = [f"{storage.root().absolute()}: {_megabytes(every)} in {counted(len(every), 'piece')}", _table(every)]
    if options.free != "none":
        lines.append(_free(options.chosen(every), options))
    text = "\n\n".join(line for line in lines if line)
    print(text)
    tracking.describe_unjoined("cache", f"cache: {lines[-1] if options.free != 'none' else lines[0]}", text)


def _free(chosen: list[Piece], options: CacheOptions) -> str:
    for each in () if options.dry_run else chosen:
        cache_contents.free(each)
    what = f"{_megabytes(chosen)} in {counted(len(chosen), 'piece')} not used for {options.days:g} days"
    return f"would free {what}; dry_run=false frees them" if options.dry_run else f"freed {what}"


def _table(every: list[Piece]) -> str:
    """Return a line for each kind: its pieces, size, the days since the newest and the oldest was used, its purpose."""
    if not every:
        return ""
    frame = pd.DataFrame([(each.kind, each.size, each.days) for each in every], columns=["kind", "bytes", "days"])
    groups = frame.groupby("kind")
    table = pd.DataFrame({
        "pieces": groups.size(),
        "MB": (groups["bytes"].sum() / 1e6).round(1),
        "days since used": [_span(low, high) for low, high in zip(groups["days"].min(), groups["days"].max(), strict=True)],
        "what for": [PURPOSES.get(str(kind), UNKNOWN) for kind in groups.groups],
    })  # fmt: skip
    return table.rename_axis(None).sort_values("MB", ascending=False).to_string()


def _span(low: float, high: float) -> str:
    return f"{low:.0f}" if round(low) == round(high) else f"{low:.0f} to {high:.0f}"


def _megabytes(pieces: list[Piece]) -> str:
    return f"{sum(each.size for each in pieces) / 1e6:,.1f} MB"
