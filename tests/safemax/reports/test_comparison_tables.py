"""The tables of a comparison, from frames of a few numbers whose results can be had by hand."""

from __future__ import annotations

import math

import pandas as pd
import pytest
from scipy.stats import t

from safemax import metric_keys as keys
from safemax.reports.comparison_tables import (
    PAPER,
    UNSEEDED,
    Column,
    class_table,
    class_table_text,
    interval,
    paired,
    standings_table,
    standings_text,
    with_paper_values,
)

UA = Column("UA %", keys.UA, 2)
FID = Column("FID", keys.FID_JUDGE, 1)
RTE = Column("RTE min", keys.RUNTIME_MINUTES, 1)
CLASSES = ("x", "y")


def frame(*rows: tuple[str, str, int, float, float]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["variant", "forget", "seed", keys.UA, keys.FID_JUDGE])


RUNS = frame(
    ("base", "x", UNSEEDED, 0, 4),
    ("base", "y", UNSEEDED, 2, 5),
    ("one", "x", 0, 90, 5),
    ("one", "x", 1, 100, 7),
    ("one", "y", 0, 80, 8),
    ("one", "y", 1, 80, 10),
    ("two", "x", 0, 94, 4),
    ("two", "x", 1, 100, 4),
    ("two", "y", 0, 70, 9),
    ("two", "y", 1, 70, 9),
)


def test_a_cell_is_the_mean_over_seeds_and_the_last_rows_are_mean_and_sd_over_classes() -> None:
    result = class_table(RUNS, (UA, FID), ("base", "one"), CLASSES)
    assert list(result.index) == ["x", "y", "mean", "sd"]
    assert list(result.columns) == [("base", "UA %"), ("base", "FID"), ("one", "UA %"), ("one", "FID")]
    # Seeds: x (90 + 100) / 2 = 95, y 80. Mean 87.5; sd with n - 1 of two values is their distance over sqrt 2.
    assert result["one", "UA %"].tolist() == pytest.approx([95, 80, 87.5, 15 / math.sqrt(2)])
    assert result["one", "FID"].tolist() == pytest.approx([6, 9, 7.5, 3 / math.sqrt(2)])


def test_a_class_without_a_run_leaves_a_gap_and_no_mean() -> None:
    result = class_table(RUNS[~((RUNS["variant"] == "one") & (RUNS["forget"] == "y"))], (UA,), ("one",), CLASSES)
    assert result["one", "UA %"].isna().tolist() == [False, True, True, True]


def test_the_standings_have_a_row_a_contender_with_mean_and_sd_over_the_classes() -> None:
    result = standings_table(class_table(RUNS, (UA, FID), ("base", "one"), CLASSES))
    assert list(result.index) == ["base", "one"]
    assert list(result.columns) == [("UA %", "mean"), ("UA %", "sd"), ("FID", "mean"), ("FID", "sd")]
    assert result.loc["one"].tolist() == pytest.approx([87.5, 15 / math.sqrt(2), 7.5, 3 / math.sqrt(2)])
    assert standings_text(result, (UA, FID)).loc["one"].tolist() == ["87.50 ± 10.61", "7.5 ± 2.1"]


def test_the_standings_of_one_class_have_no_deviation_and_a_value_that_is_missing_a_dash() -> None:
    runs = RUNS[RUNS["forget"] == "x"].assign(**{RTE.metric: [math.nan, 1.0, 1.0, 1.0, 1.0]})
    shown = standings_text(standings_table(class_table(runs, (UA, RTE), ("base", "one"), ("x",))), (UA, RTE))
    assert shown.to_dict("list") == {"UA %": ["0.00", "95.00"], "RTE min": ["-", "1.0"]}


def test_a_value_that_a_contender_never_has_is_left_out_of_the_table() -> None:
    runs = RUNS.assign(**{RTE.metric: [math.nan, math.nan, *[1.0] * 8]})
    result = class_table(runs, (FID, RTE), ("base", "one"), CLASSES)
    assert list(result.columns) == [("base", "FID"), ("one", "FID"), ("one", "RTE min")]


def test_paired_differences_take_the_classes_as_pairs_after_averaging_their_seeds() -> None:
    (row,) = paired(RUNS, (FID,), [("one", "two")]).itertuples()
    # x: ((5 - 4) + (7 - 4)) / 2 = 2; y: ((8 - 9) + (10 - 9)) / 2 = 0. Mean 1, s = 2 / sqrt 2 = sqrt 2, s / sqrt 2 = 1,
    # and t(0.975, 1) = tan(0.475 pi) = 12.706.
    reach = math.tan(0.475 * math.pi)
    assert (row.difference, row.pairs) == (1, 2)
    assert (row.low, row.high) == pytest.approx((1 - reach, 1 + reach))


def test_every_seed_of_a_method_is_held_against_the_one_base() -> None:
    (row,) = paired(RUNS, (FID,), [("one", "base")]).itertuples()
    # x: (5 + 7) / 2 - 4 = 2; y: (8 + 10) / 2 - 5 = 4.
    assert (row.difference, row.pairs) == (3, 2)


def test_with_one_class_the_seeds_are_the_pairs() -> None:
    (row,) = paired(RUNS[RUNS["forget"] == "x"], (UA,), [("one", "two")]).itertuples()
    # Seeds: 90 - 94 = -4 and 100 - 100 = 0.
    assert (row.difference, row.pairs) == (-2, 2)


def test_only_what_both_finished_is_paired() -> None:
    (row,) = paired(RUNS.drop(index=9), (FID,), [("one", "two")]).itertuples()
    # Without seed 1 of y in two: x still 2, y 8 - 9 = -1.
    assert row.difference == pytest.approx(0.5)


def test_a_pair_of_which_one_has_no_run_gives_no_row() -> None:
    assert len(paired(RUNS, (FID,), [("one", "gold")])) == 0


def test_the_interval_of_equal_differences_has_no_width_and_that_of_one_is_unknown() -> None:
    assert interval([0.5, 0.5, 0.5]) == (0.5, 0.5)
    assert all(map(math.isnan, interval([0.5])))


def test_the_interval_is_students() -> None:
    # 1, 2, 3: mean 2, s = 1, t(0.975, 2) = 4.3027 (any table), reach 4.3027 / sqrt 3 = 2.4841.
    assert interval([1, 2, 3]) == pytest.approx((2 - 2.4841, 2 + 2.4841), abs=1e-4)


def test_the_interval_of_a_mean_is_the_closed_form() -> None:
    values = [0.3, -1.7, 2.2, 0.9, 4.1, -0.2, 1.1]
    mean, reach = sum(values) / 7, t.ppf(0.975, 6) * pd.Series(values).std() / math.sqrt(7)
    assert interval(values) == pytest.approx((mean - reach, mean + reach), abs=1e-12)


def test_the_papers_values_stand_behind_ours_and_only_where_the_paper_has_them() -> None:
    runs = frame(
        ("safemax", "c0", 0, 99, 5.0),
        ("safemax", "c2", 0, 98, 6.0),
        ("mine", "c0", 0, 97, 4.0),
        ("mine", "c2", 0, 1, 2),
    )
    names = [f"c{k}" for k in range(10)]
    result = with_paper_values(class_table(runs, (UA, FID), ("safemax", "mine"), ("c0", "c2")), names)
    assert [value for one, value in result.columns if one == "safemax"] == [
        "UA %",
        "UA % (paper)",
        "FID",
        "FID (paper)",
    ]
    assert [value for one, value in result.columns if one == "mine"] == ["UA %", "FID"]
    # Table 2, classes 0 and 2.
    assert result["safemax", "FID (paper)"].tolist()[:3] == pytest.approx([13.11, 17.07, (13.11 + 17.07) / 2])


@pytest.mark.parametrize(
    ("method", "value", "mean", "deviation"),
    [
        # As printed in Table 2, except where its rows say otherwise: SAFEMax's FID has the deviation 1.48 (printed 0.32) and
        # its RTE the mean 5.82 (5.83), SalUn's RTE has the mean 11.88 (11.81).
        ("selective_amnesia", "FID", 17.71, 1.29),
        ("salun", "FID", 16.76, 1.27),
        ("safemax", "FID", 16.74, 1.48),
        ("selective_amnesia", "RTE min", 174.37, 0.38),
        ("salun", "RTE min", 11.88, 0.25),
        ("safemax", "RTE min", 5.82, 0.04),
    ],
)
def test_the_papers_rows_give_the_means_and_deviations_that_it_prints(
    method: str, value: str, mean: float, deviation: float
) -> None:
    values = pd.Series(PAPER[method][value])
    assert (values.mean(), values.std()) == pytest.approx((mean, deviation), abs=0.006)


def test_a_written_table_has_each_columns_digits_and_a_dash_for_nothing() -> None:
    runs = frame(("one", "x", 0, 99.123, 5.55))
    shown = class_table_text(class_table(runs, (UA, FID), ("one",), ("x",)), (UA, FID))
    assert shown.loc["x"].tolist() == ["99.12", "5.5"]
    assert shown.loc["sd"].tolist() == ["-", "-"]
