"""The tables that compare methods: by class with mean and deviation, paired differences, next to the paper's values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import pandas as pd
from scipy.stats import t as student

from safemax import metric_keys as keys

MEAN, DEVIATION = "mean", "sd"
UNSEEDED = -1  # the seed of base and gold: one model is compared with every seed


class Column(NamedTuple):
    """A column of a table.

    Args:
        header: what the table calls it.
        metric: the metric's key in a run.
        digits: after the point.
        published: whether the paper has the column too.
    """

    header: str
    metric: str
    digits: int
    published: bool = True


# The paper's columns, and what they leave out: UA by judges that know noise, and the minutes of the prior.
UNLEARNING = (
    Column("H", keys.ENTROPY, 3),
    Column("UA %", keys.UA, 2),
    Column("UA_reject %", keys.UA_REJECT, 2, published=False),
)
RETENTION = (
    Column("FID", keys.FID_JUDGE, 2),
    Column("RTE min", keys.RUNTIME_MINUTES, 2),
    Column("memory GB", keys.PEAK_MEMORY_GB, 2),
    Column("prior min", keys.SETUP_MINUTES, 2, published=False),
)
STANDINGS = (*UNLEARNING, Column("accuracy %", keys.ACCURACY, 2, published=False), *RETENTION)

# Tables 1 and 2, classes 0 to 9 of CIFAR-10.
PAPER: dict[str, dict[str, tuple[float, ...]]] = {
    "selective_amnesia": {
        "H": (1.062, 0.987, 0.948, 1.006, 0.926, 0.908, 0.993, 1.007, 0.900, 0.998),
        "UA %": (98.60, 99.60, 1.80, 100, 100, 100, 100, 100, 100, 100),
        "FID": (14.29, 18.72, 18.55, 17.66, 17.67, 17.31, 17.71, 18.37, 18.56, 18.28),
        "RTE min": (174.32, 174.37, 174.38, 174.76, 174.87, 174.62, 173.75, 173.76, 174.26, 174.65),
        "memory GB": (17.29,) * 10,
    },
    "salun": {
        "H": (0.051, 0.032, 0.084, 0.068, 0.085, 0.040, 0.045, 0.027, 0.045, 0.057),
        "UA %": (99.00, 100, 98.80, 99.60, 99.60, 99.60, 100, 100, 99.20, 99.20),
        "FID": (14.11, 16.85, 18.24, 16.84, 16.64, 16.95, 16.78, 16.93, 18.72, 15.55),
        "RTE min": (11.56, 11.96, 11.97, 12.03, 12.03, 11.29, 12.00, 12.00, 11.99, 11.98),
        "memory GB": (23.22, 23.23, 23.24, 23.23, 23.24, 23.23, 23.23, 23.23, 23.24, 23.24),
    },
    "safemax": {
        "H": (1.132, 1.156, 1.156, 1.122, 1.128, 1.118, 1.144, 1.136, 1.152, 1.124),
        "UA %": (100, 100, 0.00, 100, 100, 100, 100, 100, 100, 100),
        "FID": (13.11, 18.01, 17.07, 15.64, 16.89, 17.07, 16.80, 17.93, 18.20, 16.66),
        "RTE min": (5.82, 5.79, 5.80, 5.89, 5.80, 5.79, 5.79, 5.90, 5.80, 5.85),
        "memory GB": (9.50,) * 10,
    },
}


def class_table(
    runs: pd.DataFrame, columns: Sequence[Column], variants: Sequence[str], classes: Sequence[str]
) -> pd.DataFrame:
    """Return a row a forgotten class, then mean and sd over the classes; a block of columns a variant.

    Args:
        runs: a row a run: variant, forget (the class's name), seed, and metrics by key.
        columns: what is shown of each variant; a column that a variant has no value for is left out.
        variants: in order, such as base, gold, safemax.
        classes: names of the forgotten classes, in order.

    Returns:
        numbers, means over the seeds; columns (variant, header). Mean and sample deviation (n - 1) are missing where a
        class is, and the deviation of a single class is.
    """
    means = runs.groupby(["variant", "forget"])[[each.metric for each in columns]].mean()
    blocks = {}
    for variant in variants:
        for column in columns:
            values = means.loc[means.index.isin([variant], level=0), column.metric].droplevel(0).reindex(classes)
            if values.notna().any():
                blocks[variant, column.header] = pd.concat([values, _summary(values)])
    frame = pd.DataFrame(blocks, index=[*classes, MEAN, DEVIATION]).rename_axis("forgotten class")
    return frame.set_axis(pd.MultiIndex.from_tuples(list(blocks), names=("variant", "value")), axis=1)


def standings_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a row a variant of what `class_table` returned: mean and sd over the classes of each value, missing where it has none.

    Returns:
        numbers; columns (value, mean or sd).
    """
    flat = frame.loc[[MEAN, DEVIATION]].T.unstack("value").swaplevel(axis=1)
    variants = frame.columns.unique("variant")
    wanted = [(value, part) for value in frame.columns.unique("value") for part in (MEAN, DEVIATION)]
    return flat.reindex(index=variants, columns=pd.MultiIndex.from_tuples(wanted))


def with_paper_values(frame: pd.DataFrame, class_names: Sequence[str]) -> pd.DataFrame:
    """Return a table of CIFAR-10 with the paper's value, "(paper)", behind each value that the paper has.

    Mean and deviation are recomputed from the paper's own rows, which do not give all that it prints: SAFEMax's FID deviates by
    1.48 (printed 0.32), SalUn's RTE has the mean 11.88 (printed 11.81).

    Args:
        frame: as `class_table` returns it.
        class_names: all ten, in label order.
    """
    columns: dict[tuple[str, str], pd.Series] = {}
    rows = [str(each) for each in frame.index if each not in (MEAN, DEVIATION)]
    for variant, header in frame.columns:
        columns[variant, header] = frame[variant, header]
        published = PAPER.get(variant, {}).get(header)
        if published:
            values = pd.Series([published[list(class_names).index(name)] for name in rows], index=rows, dtype=float)
            columns[variant, f"{header} (paper)"] = pd.concat([values, _summary(values)])
    labels = pd.MultiIndex.from_tuples(list(columns), names=frame.columns.names)
    return pd.DataFrame(columns, index=frame.index).set_axis(labels, axis=1)


def paired(runs: pd.DataFrame, columns: Iterable[Column], pairs: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """Return the mean difference of each pair of variants in each metric, with Student's 95 % interval.

    The seeds of a class are averaged first and the classes are the pairs, since runs of one class are alike; where there is
    only one class, its seeds are the pairs. Only what both variants finished counts. All runs are measured with the same
    starting noise, which pairs them; an effect of that noise is in every pair and not in the interval.

    Args:
        runs: as in `class_table`; base and gold have the seed UNSEEDED and are compared with every seed.
        columns: the metrics.
        pairs: (variant, the one it is compared with).

    Returns:
        a row a pair and metric: value, variant, against, difference, low, high, pairs (their number).
    """
    rows = []
    for column in columns:
        for one, other in pairs:
            differences = _differences(_values(runs, one, column.metric), _values(runs, other, column.metric))
            if len(differences):
                low, high = interval(differences.tolist())
                middle = float(differences.mean())
                rows.append((column.header, one, other, middle, low, high, len(differences)))
    return pd.DataFrame(rows, columns=["value", "variant", "against", "difference", "low", "high", "pairs"])


def interval(differences: Sequence[float]) -> tuple[float, float]:
    """Return Student's 95 % interval of the mean of n differences: mean -+ t(0.975, n - 1) s / sqrt(n), nan for n below 2.

    scipy's own `interval(loc=, scale=)` is nan where all differences are equal; this one then has no width.
    """
    values = pd.Series(differences, dtype=float)
    low, high = student.interval(0.95, len(values) - 1)
    mean, error = float(values.mean()), float(values.sem())
    return mean + float(low) * error, mean + float(high) * error


def class_table_text(frame: pd.DataFrame, columns: Sequence[Column]) -> pd.DataFrame:
    """Return a table as text, each number with its column's digits, "-" for none, the two lines of its head joined."""
    digits = {each.header: each.digits for each in columns}
    shown = {
        f"{variant} {header}": [
            _cell(value, digits[header.removesuffix(" (paper)")]) for value in frame[variant, header]
        ]
        for variant, header in frame.columns
    }
    return pd.DataFrame(shown, index=frame.index)


def standings_text(frame: pd.DataFrame, columns: Sequence[Column]) -> pd.DataFrame:
    """Return standings as text: "mean ± sd", only the mean where one class was forgotten."""
    shown = {}
    for column in (each for each in columns if each.header in frame):
        pairs = zip(frame[column.header, MEAN], frame[column.header, DEVIATION], strict=True)
        shown[column.header] = [_spread(mean, deviation, column.digits) for mean, deviation in pairs]
    return pd.DataFrame(shown, index=frame.index)


def _spread(mean: float, deviation: float, digits: int) -> str:
    cell = _cell(mean, digits)
    return cell if math.isnan(deviation) else f"{cell} ± {_cell(deviation, digits)}"


def _cell(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _summary(values: pd.Series) -> pd.Series:
    return pd.Series({MEAN: values.mean(skipna=False), DEVIATION: values.std(skipna=False)})


def _values(runs: pd.DataFrame, variant: str, metric: str) -> pd.Series:
    rows = runs[runs["variant"] == variant]
    return rows.set_index(["forget", "seed"])[metric].dropna()


def _differences(one: pd.Series, other: pd.Series) -> pd.Series:
    if set(other.index.get_level_values("seed")) == {UNSEEDED}:
        seedless: Mapping[str, float] = other.droplevel("seed").to_dict()
        held = pd.Series(
            [seedless.get(name, math.nan) for name in one.index.get_level_values("forget")], index=one.index
        )
    else:
        held = other.reindex(one.index)
    differences = (one - held).dropna()
    by_class = differences.groupby(level="forget").mean()
    return by_class if len(by_class) > 1 else differences
