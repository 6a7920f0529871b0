"""Compare the versions of a registered model: method, forgotten classes, UA, FID, cost, verdict and aliases in one table.

A filter selects the versions whose numbers meet it, such as where="ua>=99 and fid<20". A number is named by its column or by
its key in a run: forget/ua_reject, retain/accuracy, cost/peak_memory_gb.
"""

from __future__ import annotations

if __name__ == "__main__":  # first: help and refusals need none of the imports below
    from pipelines.cli import console

    console.run("versions")

import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pipelines import tracking
from pipelines.cli.options import check_model_name
from pipelines.cli.parser import Arguments, parse
from pipelines.registry import aliases
from pipelines.registry.version_filter import conditions
from pipelines.registry.version_table import NUMBERS, TEXTS, rows, table
from safemax.errors import InputError, unknown
from safemax.knobs import check, knob
from safemax.reports.html import table_page


@dataclass(frozen=True)
class ListOptions:
    """Which versions are listed, and how."""

    model: str = knob("digits-ddpm", "registered model")
    where: str = knob("", "conditions such as ua>=99 and fid<20 and method=safemax; empty selects every version")
    format: str = knob("text", "what is printed; all three are artifacts of the run", choices=("text", "csv", "html"))

    def __post_init__(self) -> None:
        check(self)
        check_model_name("model", self.model)


PARAMETERS: dict[str, type] = {"versions": ListOptions}


def versions(argv: Sequence[str]) -> None:
    """List by the command line's parameters."""
    chosen = parse("python -m pipelines.versions", __doc__ or "", PARAMETERS, argv)
    options = chosen["versions"]
    names = [each.name for each in tracking.search_all(tracking.store().search_registered_models)]
    if options.model not in names:
        raise unknown("registered model", options.model, names)
    every = rows(options.model)
    known = {*TEXTS, *NUMBERS, *(key for row in every for key in row)} - {"version"}
    wanted = conditions(options.where, sorted(known))
    frame = table([row for row in every if all(each.holds(row) for each in wanted)])
    none = f"no version of {options.model} meets {options.where}" if every else f"{options.model} has no versions"
    texts = {
        "text": frame.to_string(float_format=lambda value: f"{value:.4g}", na_rep="-") if len(frame) else none,
        "csv": frame.to_csv().rstrip("\n"),
        "html": table_page(
            frame, f"Versions of {options.model}" + (f" where {options.where}" if options.where else "")
        ),
    }
    _log(chosen, frame, texts)
    print(texts[options.format])
    for line in _moved_by_hand(options.model):
        print(line, file=sys.stderr)


def _log(chosen: Arguments, frame: pd.DataFrame, texts: Mapping[str, str]) -> None:
    options: ListOptions = chosen["versions"]
    params = {"versions.model": options.model, "versions.where": options.where}
    name, tags = f"versions-{options.model}", {"kind": "versions"}
    with tracking.run(name, experiment=tracking.ADMINISTRATION, params=params, tags=tags) as run:
        run.parameters(chosen.record())
        run.table(frame.reset_index(), "versions")
        with tempfile.TemporaryDirectory() as scratch:
            for kind in ("csv", "html"):
                path = Path(scratch) / f"versions.{kind}"
                path.write_text(texts[kind], encoding="utf-8")
                run.artifact(path)


def _moved_by_hand(name: str) -> list[str]:
    """Return a warning for each alias that was promoted to once and now points to a version that no promotion set."""
    numbers = tracking.store().get_registered_model(name).aliases
    return [line for alias, number in numbers.items() if (line := _warning(name, alias, str(number)))]


def _warning(name: str, alias: str, number: str) -> str:
    try:
        moves = aliases.recorded_moves(name, alias)
    except InputError as error:
        return f"warning: {error}"
    if not moves or aliases.promotion_history(moves, number)[-1:] == [number]:
        return ""
    return f"warning: {alias} points to version {number}, which no promotion set: somebody moved it by hand"
