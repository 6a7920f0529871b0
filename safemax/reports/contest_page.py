"""The page of a contest: a sortable table, the front of forgetting and quality, pictures, and what the tuning cost."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator, Mapping, Sequence

import pandas as pd
from matplotlib.figure import Figure

from safemax.reports import contest_tables
from safemax.reports.contest_tables import BASE, GOLD, Result
from safemax.reports.html import render
from safemax.reports.html_report import Picture

HEADINGS = {
    "method": "method", "variant": "knobs", "bases": "bases", "corrections": "corrections", "recognised": "recognised %",
    "fid": "FID", "fid_change": "FID - default's", "accuracy": "accuracy %", "minutes": "minutes",
    "setup_minutes": "prior minutes", "rows": "rows", "prior_rows": "prior rows",
}  # fmt: skip


def render_contest(results: Sequence[Result], table: pd.DataFrame) -> str:
    """Return the page as HTML that refers to nothing outside it.

    Args:
        results: the files that it joins (contest_tables.read).
        table: their standings.
    """
    contest = results[0]["contest"] if results else {}
    return render(
        "contest.html",
        title="comparison",
        contest=contest,
        headings=[HEADINGS.get(name, name) for name in _shown(table)],
        rows=[list(_cells(row, _shown(table))) for row in table.to_dict("records")],
        front=Picture(_png(front_figure(table)), "Left and low is better; grey lines lead from default to tuned knobs.")
        if len(table)
        else None,
        variances={
            value: _small(contest_tables.variances(results, value)) for value in ("recognised", "fid") if results
        },
        searches=_small(contest_tables.searches(results)),
        pictures=list(_pictures(results)),
        curves=_small(_curves(results)),
        missing=contest_tables.missing(results),
    )


def front_figure(table: pd.DataFrame) -> Figure:
    """Return recognised percent against FID with 95 % intervals: hollow with default knobs, filled with tuned ones."""
    figure = Figure(figsize=(9.5, 5.5), dpi=110, layout="constrained")
    axis = figure.subplots()
    for number, (method, part) in enumerate(table.groupby("method", sort=False)):
        colour = "black" if method in (BASE, GOLD) else f"C{number % 10}"
        axis.plot(part["recognised"], part["fid"], color="lightgrey", zorder=0)
        for row in part.to_dict("records"):
            is_filled = row["variant"] == "tuned" or method in (BASE, GOLD)
            axis.errorbar(
                row["recognised"], row["fid"], xerr=_error(row, "recognised"), yerr=_error(row, "fid"), fmt="o",
                color=colour, mfc=colour if is_filled else "white", elinewidth=0.8, alpha=0.9,
            )  # fmt: skip
        last = part.iloc[-1]
        axis.annotate(str(method), (last["recognised"], last["fid"]), (5, 4), textcoords="offset points", fontsize=8)
    axis.set(xlabel="recognised as the forgotten class, %", ylabel="FID of the retained classes")
    axis.set_xscale("symlog", linthresh=1)
    axis.set_yscale("log")
    return figure


def _shown(table: pd.DataFrame) -> list[str]:
    return [name for name in table.columns if name in HEADINGS or name.startswith("attack ")]


def _cells(row: Mapping[str, object], names: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Yield the text, the interval and what to sort by of each cell."""
    for name in names:
        value = row[name]
        if not isinstance(value, (int, float)):
            yield str(value), "", str(value)
            continue
        if math.isnan(value):
            yield "-", "", ""
            continue
        low, high = row.get(f"{name}_low", math.nan), row.get(f"{name}_high", math.nan)
        has_interval = isinstance(low, float) and isinstance(high, float) and not math.isnan(low)
        yield _number(value), f"{_number(low)} to {_number(high)}" if has_interval else "", repr(value)


def _number(value: object) -> str:
    assert isinstance(value, (int, float))
    return f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 100 else f"{value:.2f}"


def _error(row: Mapping[str, float], name: str) -> list[list[float]] | None:
    if math.isnan(row[f"{name}_low"]):
        return None
    return [[max(0.0, row[name] - row[f"{name}_low"])], [max(0.0, row[f"{name}_high"] - row[name])]]


def _small(frame: pd.DataFrame) -> dict[str, list[list[str]] | list[str]]:
    """Return a frame as headings and rows of text."""
    return {
        "headings": [str(name) for name in frame.columns],
        "rows": [[_text(value) for value in row] for row in frame.to_dict("split")["data"]],
    }


def _text(value: object) -> str:
    if isinstance(value, (int, float)):
        return "-" if math.isnan(value) else _number(value)
    return str(value)


def _pictures(results: Sequence[Result]) -> Iterator[Picture]:
    """Yield what each method draws for the first forgotten class on the first base."""
    for result in results:
        if result["base"] == min(each["base"] for each in results):
            seen = set()
            for each in result["corrections"]:
                if each["variant"] not in seen:
                    seen.add(each["variant"])
                    yield Picture(
                        base64.b64decode(each["picture"]),
                        f"{result['method']}, {each['variant']} knobs: {each['class']}",
                    )


def _curves(results: Sequence[Result]) -> pd.DataFrame:
    """Return the mean percent recognised over the attacker's budget, one row a method and attack."""
    found: dict[tuple[str, str, str], dict[float, list[float]]] = {}
    for result in results:
        for each in result["corrections"]:
            for attack in each["attacks"].values():
                for name, x, recognised in attack["curve"]:
                    place = found.setdefault((name, result["method"], each["variant"]), {})
                    place.setdefault(x, []).append(recognised)
    made = [
        {"attack": name, "method": method, "knobs": variant,
         "recognised % at budget": ", ".join(f"{x:g}: {sum(v) / len(v):.0f}" for x, v in curve.items())}
        for (name, method, variant), curve in sorted(found.items())
    ]  # fmt: skip
    return pd.DataFrame(made)


def _png(figure: Figure) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()
