"""The numbers of contests: result files into rows, the parts of their variance, and one row a method with intervals."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binomtest
from scipy.stats import t as student

from safemax.knobs import external

Result = Mapping[str, Any]
LEVEL = 0.95
VALUES = {"recognised": 100.0, "fid": math.inf, "accuracy": 100.0}  # and the most that each can be; none is below 0
SOURCES = {"base": "base", "label": "class", "both": "base and class", "seed": "seed", "evaluation": "sampling"}
BASE, GOLD = "base", "gold"
DEFAULT = "default"


@dataclass(frozen=True)
class Components:
    """The parts of a value's variance over balanced rows; nan where a part cannot be told from the others.

    Args:
        base: of independently trained bases.
        label: of forgotten classes.
        both: of bases and classes together, beyond their sum.
        seed: of corrections of one class on one base.
        evaluation: of samples of one correction.
    """

    base: float
    label: float
    both: float
    seed: float
    evaluation: float


def read(folder: Path) -> list[Result]:
    """Return the result files of a folder that can stand in one table: those of the most common budget and protocol."""
    contents = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    results = [
        each for each in contents if isinstance(each, dict) and {"contest", "method", "corrections"} <= set(each)
    ]
    if not results:
        return []
    keys = [json.dumps(each["contest"], sort_keys=True) for each in results]
    common = Counter(keys).most_common(1)[0][0]
    return [each for each, key in zip(results, keys, strict=True) if key == common]


def rows(results: Sequence[Result]) -> pd.DataFrame:
    """Return one row per measurement: method, variant, base, class, seed, evaluation, its values, and those of its cost."""
    made = [
        {"method": result["method"], "variant": each["variant"], "base": result["base"], "class": each["class"],
         "seed": each["seed"], **each["cost"], **measured}
        for result in results
        for each in result["corrections"]
        for measured in each["rows"]
    ]  # fmt: skip
    return pd.DataFrame(made)


def components(frame: pd.DataFrame, value: str) -> Components:
    """Return the parts of a value's variance, by the means of squares of bases crossed with classes, seeds within them.

    Args:
        frame: rows of one method and variant.
        value: a column.
    """
    corrections = frame.groupby(["base", "class", "seed"])[value]
    evaluation = corrections.var().mean()
    per_correction = corrections.mean()
    cells = per_correction.groupby(level=["base", "class"])
    seed = cells.var().mean() - _or_zero(evaluation) / corrections.size().mean()
    table = cells.mean().unstack("class")
    of_base, of_class, of_both = _mean_squares(table)
    count, labels = table.shape
    inner = _or_zero(seed) / cells.size().mean()
    return Components(
        base=_part((of_base - _or_zero(of_both)) / labels),
        label=_part((of_class - _or_zero(of_both)) / count),
        both=_part(of_both - inner),
        seed=_part(seed),
        evaluation=evaluation,
    )


def interval(frame: pd.DataFrame, value: str) -> tuple[float, float, float]:
    """Return a value's mean over all bases and classes with its 95 % interval, for new bases and new classes.

    The variance of the mean of a crossed table is (MS_base + MS_class - MS_both) / cells; with one base or one class it is
    that of the other's means, and the interval holds for that base or class. Degrees of freedom are Satterthwaite's. With
    one of each there is no interval: nan.
    """
    table = frame.groupby(["base", "class"])[value].mean().unstack("class")
    mean, cells = float(table.to_numpy().mean()), table.size
    squares = dict(zip(("base", "class", "both"), _mean_squares(table), strict=True))
    count, labels = table.shape
    degrees = {"base": count - 1, "class": labels - 1, "both": (count - 1) * (labels - 1)}
    known = {name: square for name, square in squares.items() if not math.isnan(square)}
    if not known:
        return mean, math.nan, math.nan
    signed = sum(-square if name == "both" else square for name, square in known.items())
    total = max(signed, *(square for name, square in known.items() if name != "both"))
    spread = sum(square**2 / degrees[name] for name, square in known.items())
    freedom = total**2 / spread if spread else 1.0
    half = float(student.ppf((1 + LEVEL) / 2, max(1.0, freedom))) * math.sqrt(total / cells)
    return mean, mean - half, mean + half


def standings(results: Sequence[Result]) -> pd.DataFrame:
    """Return one row per method and variant, the best first: forgetting, quality, cost and attacks, with 95 % intervals."""
    if not results:
        return pd.DataFrame()
    frame = rows(results)
    samples = results[0]["contest"].get("forget_samples", 0)
    parts = {key: part for key, part in frame.groupby(["method", "variant"], sort=False)}
    found = [_standing(results, part, parts.get((method, DEFAULT)), samples) for (method, _), part in parts.items()]
    table = pd.DataFrame(found)
    forgot = table["recognised"] <= 2
    return table.assign(forgot=forgot).sort_values(["forgot", "fid"], ascending=[False, True]).reset_index(drop=True)


def missing(results: Sequence[Result]) -> list[str]:
    """Return what a full table of these methods and bases lacks, as sentences."""
    have = {(each["method"], each["base"]) for each in results}
    methods, bases = sorted({name for name, _ in have}), sorted({base for _, base in have})
    gaps = [f"{name} on base {base}" for name in methods for base in bases if (name, base) not in have]
    untuned = sorted({each["method"] for each in results if not each["search"]} - {BASE, GOLD})
    return gaps + [f"{name} with tuned knobs" for name in untuned]


def variances(results: Sequence[Result], value: str) -> pd.DataFrame:
    """Return the standard deviation that each part of the variance makes, by method and variant."""
    made = []
    for (method, variant), part in rows(results).groupby(["method", "variant"], sort=False):
        parts = components(part, value)
        deviations = {SOURCES[name]: math.sqrt(each) for name, each in vars(parts).items()}
        made.append({"method": method, "knobs": variant, **deviations})
    return pd.DataFrame(made)


def searches(results: Sequence[Result]) -> pd.DataFrame:
    """Return what was searched, what was chosen and what it cost, one row a method."""
    made = {}
    for each in results:
        found = each["search"]
        if found:
            chosen = (
                ", ".join(f"{external(name)} {value:.3g}" for name, value in found["values"].items()) or "the defaults"
            )
            cost = found["cost"]
            made[each["method"]] = {
                "method": each["method"], "trials": len(found["trials"]), "rows": cost["rows"],
                "prior rows": cost["prior_rows"], "minutes": cost["minutes"], "best trial": found["best"], "knobs": chosen,
            }  # fmt: skip
    return pd.DataFrame(list(made.values()))


def as_text(table: pd.DataFrame) -> str:
    """Return the standings for a terminal."""
    shown = [name for name in table.columns if not name.endswith(("_low", "_high")) and name != "forgot"]
    return table[shown].to_string(index=False, float_format=lambda value: f"{value:.2f}", na_rep="-")


def _standing(
    results: Sequence[Result], part: pd.DataFrame, default: pd.DataFrame | None, samples: int
) -> dict[str, Any]:
    first = part.iloc[0]
    row: dict[str, Any] = {"method": first["method"], "variant": first["variant"], "bases": part["base"].nunique()}
    row |= {"classes": part["class"].nunique(), "corrections": len(part.drop_duplicates(["base", "class", "seed"]))}
    for value, most in VALUES.items():
        mean, *ends = interval(part, value)
        low, high = np.clip(ends, 0.0, most).tolist()
        row |= {value: mean, f"{value}_low": low, f"{value}_high": high}
    row |= _at_least_the_samples(row, len(part) * samples) | _of_default(part, default)
    costs = [name for name in ("rows", "prior_rows", "minutes", "setup_minutes", "memory_gb") if name in part]
    row |= {name: part[name].mean() for name in costs}
    return row | _attacks(results, first["method"], first["variant"])


def _of_default(part: pd.DataFrame, default: pd.DataFrame | None) -> dict[str, float]:
    """Return by how much the FID differs from that of the default knobs, pair by pair; nan for the defaults themselves."""
    if default is None or part["variant"].iloc[0] == DEFAULT:
        return dict.fromkeys(("fid_change", "fid_change_low", "fid_change_high"), math.nan)
    pair = ["base", "class", "seed", "evaluation"]
    difference = part.set_index(pair)["fid"] - default.set_index(pair)["fid"]
    mean, low, high = interval(difference.dropna().reset_index(), "fid")
    return {"fid_change": mean, "fid_change_low": low, "fid_change_high": high}


def _at_least_the_samples(row: Mapping[str, float], count: int) -> dict[str, float]:
    """Return the ends of a share's interval, no narrower than so many samples allow: equal shares have no spread."""
    if not count:
        return {}
    share = binomtest(round(row["recognised"] * count / 100), count).proportion_ci(LEVEL, method="wilson")
    low, high = 100 * share.low, 100 * share.high
    spread_low, spread_high = row["recognised_low"], row["recognised_high"]
    if not math.isnan(spread_low):
        low, high = min(low, spread_low), max(high, spread_high)
    return {"recognised_low": low, "recognised_high": high}


def _attacks(results: Sequence[Result], method: str, variant: str) -> dict[str, float]:
    """Return the mean success of every variant of every attack, in percent."""
    found: dict[str, list[float]] = {}
    for result in results:
        for each in result["corrections"] if result["method"] == method else ():
            for attack in each["attacks"].values() if each["variant"] == variant else ():
                for name, success in attack["success"].items():
                    found.setdefault(name, []).append(success)
    return {f"attack {name}": sum(values) / len(values) for name, values in found.items()}


def _mean_squares(table: pd.DataFrame) -> tuple[float, float, float]:
    """Return the mean squares of bases (rows), classes (columns) and both; nan where there is one of a kind."""
    count, labels = table.shape
    of_base = labels * table.mean(axis=1).var()
    of_class = count * table.mean(axis=0).var()
    if count == 1 or labels == 1:
        return of_base, of_class, math.nan
    rest = table.sub(table.mean(axis=1), axis=0).sub(table.mean(axis=0), axis=1) + table.to_numpy().mean()
    return of_base, of_class, float((rest.to_numpy() ** 2).sum()) / ((count - 1) * (labels - 1))


def _part(estimate: float) -> float:
    """Return an estimate of a variance, which differences of squares may leave below 0; nan stays."""
    return estimate if math.isnan(estimate) else max(0.0, float(estimate))


def _or_zero(value: float) -> float:
    return 0.0 if math.isnan(value) else value
