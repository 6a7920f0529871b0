"""Compare the versions of a registered model: method, forgotten classes, UA, FID, cost, verdict and aliases in one table.

A filter keeps the versions whose numbers meet it, such as where="ua>=99 and fid<20". A number goes by its column's name or by
its key in a run: forget/ua_reject, retain/accuracy, cost/peak_memory_gb.
"""

from __future__ import annotations

import html
import math
import operator
import re
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from pipelines import tracking
from pipelines.cli.options import taken
from pipelines.cli.parser import main, parse
from pipelines.registry import aliases
from safemax.errors import InputError, unknown
from safemax.knobs import check, knob

# Columns of the table, and the metrics that they show: the first of each that a version has.
TEXTS = ("method", "forgotten", "verdict", "aliases", "parent")
NUMBERS: dict[str, tuple[str, ...]] = {
    "ua": ("forget/ua",),
    "recognised": ("forget/recognised",),
    "recognised_high": ("forget/recognised_high",),
    "accuracy": ("retain/accuracy",),
    "fid": ("retain/fid_inception", "retain/fid_judge"),
    "minutes": ("cost/runtime_minutes",),
    "gb": ("cost/peak_memory_gb",),
}
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge, "<=": operator.le, "!=": operator.ne, ">": operator.gt, "<": operator.lt, "=": operator.eq,
}  # fmt: skip
_CONDITION = re.compile(r"\s*([A-Za-z][\w/.+-]*)\s*(>=|<=|!=|>|<|=)\s*(\S+)\s*")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_STYLE = (
    "body{font:15px sans-serif;margin:2em}table{border-collapse:collapse}"
    "td,th{padding:.3em .8em;text-align:right;border-bottom:1px solid #ddd}"
)


@dataclass(frozen=True)
class ListOptions:
    """What to list."""

    model: str = knob("digits-ddpm", "registered model")
    where: str = knob("", "conditions such as ua>=99 and fid<20 and method=safemax; empty keeps every version")
    format: str = knob("text", "what is printed; all three are the run's artifacts", choices=("text", "csv", "html"))

    def __post_init__(self) -> None:
        check(self)
        taken("model", self.model)


PARAMETERS: dict[str, type] = {"versions": ListOptions}


@dataclass(frozen=True)
class Condition:
    """One comparison of a filter: a column or a metric's key, an operator, and what to compare with."""

    name: str
    sign: str
    value: str

    def holds(self, row: Mapping[str, object]) -> bool:
        """Return whether a version's row meets it; a number that the row lacks meets nothing."""
        found = row.get(self.name)
        if isinstance(found, str):
            return (found == self.value) == (self.sign == "=")
        return isinstance(found, float) and not math.isnan(found) and _COMPARE[self.sign](found, float(self.value))


def conditions(where: str, known: Sequence[str]) -> list[Condition]:
    """Return the conditions of a filter, which `and` joins.

    Args:
        where: such as ua>=99 and method=safemax; empty gives none.
        known: columns and metrics that can be named.

    Raises:
        InputError: no comparison, an unknown name, or a value that the name's kind cannot be compared with.
    """
    parts = re.split(r"\s+and\s+", where.strip()) if where.strip() else []
    return [_condition(part, known) for part in parts]


def rows(name: str) -> list[dict[str, object]]:
    """Return what is known of each version, oldest first: columns, and every metric by its key as a float."""
    holders: dict[str, list[str]] = {}
    for each, number in tracking.store().get_registered_model(name).aliases.items():
        holders.setdefault(str(number), []).append(each)
    found = tracking.store().search_model_versions(f"name='{name}'")
    return [_row(each, holders.get(str(each.version), [])) for each in sorted(found, key=lambda v: int(v.version))]


def table(found: Sequence[Mapping[str, object]]) -> pd.DataFrame:
    """Return rows as a table of the columns, indexed by version."""
    columns = ["version", *TEXTS[:2], *NUMBERS, *TEXTS[2:]]
    return pd.DataFrame([[row[name] for name in columns] for row in found], columns=columns).set_index("version")


def page(frame: pd.DataFrame, title: str) -> str:
    """Return a table as a page of its own, every cell escaped."""
    body = frame.to_html(float_format=lambda value: f"{value:.4g}", na_rep="-", border=0, escape=True)
    name = html.escape(title)
    return f'<!doctype html><meta charset="utf-8"><title>{name}</title><style>{_STYLE}</style><h1>{name}</h1>{body}\n'


def versions(argv: Sequence[str]) -> None:
    """List by the command line's parameters."""
    asked = parse("python -m pipelines.versions", __doc__ or "", PARAMETERS, argv)["versions"]
    known = tracking.store().search_registered_models()
    if asked.model not in [each.name for each in known]:
        raise unknown("registered model", asked.model, [each.name for each in known])
    found = rows(asked.model)
    wanted = conditions(asked.where, sorted({*TEXTS, *NUMBERS, *(key for row in found for key in row)} - {"version"}))
    frame = table([row for row in found if all(each.holds(row) for each in wanted)])
    texts = {
        "text": frame.to_string(float_format=lambda value: f"{value:.4g}", na_rep="-"),
        "csv": frame.to_csv().rstrip("\n"),
        "html": page(frame, f"Versions of {asked.model}" + (f" where {asked.where}" if asked.where else "")),
    }
    _log(asked, frame, texts)
    print(texts[asked.format])
    for line in _past_the_gates(asked.model):
        print(line, file=sys.stderr)


def _log(asked: ListOptions, frame: pd.DataFrame, texts: Mapping[str, str]) -> None:
    params = {"versions.model": asked.model, "versions.where": asked.where}
    name, tags = f"versions-{asked.model}", {"kind": "versions"}
    with tracking.run(name, experiment=tracking.ADMINISTRATION, params=params, tags=tags) as run:
        run.table(frame.reset_index(), "versions")
        with tempfile.TemporaryDirectory() as scratch:
            for kind in ("csv", "html"):
                path = Path(scratch) / f"versions.{kind}"
                path.write_text(texts[kind], encoding="utf-8")
                run.artifact(path)


def _row(version: ModelVersion, aliases: Sequence[str]) -> dict[str, object]:
    tags = version.tags
    stated = {key: float(text) for key, text in tags.items() if "/" in key and _NUMBER.fullmatch(text)}
    metrics: dict[str, object] = {**_of_run(version.run_id), **stated}
    short = {name: next((metrics[key] for key in keys if key in metrics), math.nan) for name, keys in NUMBERS.items()}
    texts = {
        "method": tags.get("unlearning.method", tags.get("kind", "")),
        "forgotten": tags.get("forgotten", ""),
        "verdict": tags.get("verdict", ""),
        "aliases": ",".join(sorted(aliases)),
        "parent": tags.get("parent", "").rpartition("/")[2],
    }
    return {"version": str(version.version), **metrics, **short, **texts}


def _of_run(run_id: str | None) -> dict[str, float]:
    """Return the metrics of the run that made a version, none where it is gone: tags hold the most important ones only."""
    try:
        return dict(tracking.store().get_run(run_id).data.metrics) if run_id else {}
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return {}


def _condition(text: str, known: Sequence[str]) -> Condition:
    parts = _CONDITION.fullmatch(text)
    if parts is None:
        raise InputError(f"where = {text[:80]!r} is no comparison; write NAME>=NUMBER, joined by and")
    name, sign, value = parts.groups()
    if name not in known:
        raise unknown("number or column", name[:80], known)
    if name in TEXTS and sign not in ("=", "!="):
        raise InputError(f"where = {text.strip()[:80]!r}: {name} is text, which = and != compare")
    if name not in TEXTS and not _NUMBER.fullmatch(value):
        raise InputError(f"where = {text.strip()[:80]!r}: {name} is compared with a number")
    return Condition(name, sign, value)


def _past_the_gates(name: str) -> list[str]:
    """Return a line for each alias that was promoted to once and points now to what no promotion set."""
    now = tracking.store().get_registered_model(name).aliases
    moves = {each: aliases.recorded(name, each) for each in now}
    return [
        f"warning: {each} points to version {number}, which no promotion set: somebody moved it by hand"
        for each, number in now.items()
        if moves[each] and aliases.promotion_history(moves[each], str(number))[-1:] != [str(number)]
    ]


if __name__ == "__main__":
    main(versions)
