"""The figures of a search show its trials."""

from __future__ import annotations

from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from hpo import figures
from hpo.figures import Captions, hypervolume
from safemax import metric_keys as keys

CAPTIONS = Captions("safemax, forget a", "FID of retained classes - base's")


def trial(number: int, forgetting: float, quality: float, drop: float = 0.0, **more: Any) -> FrozenTrial:
    scores = {"forgetting": forgetting, "quality": quality, "joint": 0.0, "accuracy_drop": drop, "minutes": 1.0}
    made = optuna.create_trial(
        values=[forgetting, quality],
        params={"lr": quality / 10 + 0.01},
        distributions={"lr": FloatDistribution(0, 2)},
        user_attrs={"scores": scores, "metrics": {keys.UA_REJECT: 90.0, keys.ACCURACY: 98.0}, **more},
        system_attrs={"constraints:accuracy": drop - 1},
    )
    made.number = number
    return made


TRIALS = [trial(0, 0.5, 2.0), trial(1, 0.25, 3.0), trial(2, 0.75, 1.0, drop=5.0), trial(3, 0.6, 3.5)]


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([], 0.0),
        ([(1.0, 0.0)], 0.0),  # on the edge
        ([(0.0, 0.0)], 1.0),
        ([(0.5, 2.0)], 0.25),  # half of the width, half of the height of 4
        ([(0.5, 2.0), (0.25, 3.0)], 0.25 + 0.25 * 0.25),  # and a quarter of the width for the upper quarter
        ([(0.5, 2.0), (0.5, 2.0), (0.6, 3.0)], 0.25),  # what is beaten adds nothing
        ([(2.0, -1.0), (0.5, 5.0)], 0.0),  # beyond the reference on one axis
        ([(0.0, -1.0)], 1.25),  # better quality than the base's
    ],
)
def test_the_hypervolume_is_the_area_that_the_points_dominate(points: list[figures.Point], expected: float) -> None:
    assert hypervolume(points, (1.0, 4.0)) == pytest.approx(expected)
    assert hypervolume(points[::-1], (1.0, 4.0)) == pytest.approx(expected)


def test_the_hypervolume_never_falls_and_leaves_out_trials_outside_the_constraint() -> None:
    assert figures.volumes(TRIALS, (1.0, 4.0)) == pytest.approx([0.25, 0.3125, 0.3125, 0.3125])


def test_the_table_has_a_row_for_each_trial_with_knobs_scores_and_deaths() -> None:
    failed = optuna.create_trial(state=TrialState.FAIL, user_attrs={"deaths": ["SIGKILL of worker 1"] * 2})
    failed.number = 4
    table = figures.table([*TRIALS, failed], ["lr"])
    assert list(table.index) == [0, 1, 2, 3, 4]
    assert table.loc[1, ["lr", "forgetting", "quality", "ua_reject", "accuracy"]].tolist() == [
        0.31,
        0.25,
        3.0,
        90.0,
        98.0,
    ]
    assert table.loc[4, ["state", "deaths"]].tolist() == ["fail", 2]


def test_the_front_shows_each_kind_of_trial_and_joins_the_members() -> None:
    figure = figures.front(TRIALS, TRIALS[:2], CAPTIONS, winner=1, again={1: (0.3, 3.1)})
    (axis,) = figure.axes
    shown = {str(each.get_label()): np.asarray(each.get_offsets()).tolist() for each in axis.collections}
    assert shown == {
        "costs too much accuracy": [[0.75, 1.0]],
        "trial": [[0.6, 3.5]],
        "front": [[0.5, 2.0], [0.25, 3.0]],
        "on fresh seeds": [[0.3, 3.1]],
        "defaults (trial 0)": [[0.5, 2.0]],
        "trial 1, chosen": [[0.25, 3.0]],
    }
    assert np.asarray(axis.lines[0].get_xydata()).tolist() == [[0.25, 3.0], [0.5, 2.0]]


def test_a_ruined_model_is_an_arrow_at_the_edge_and_does_not_compress_the_others() -> None:
    figure = figures.front([*TRIALS, trial(4, 1e-6, 18.0)], TRIALS[:2], CAPTIONS)
    # Three quarters of five trials, four of them, the front and the defaults lie at 3.5 or below; 30 % above is 4.55.
    heights = [np.asarray(each.get_offsets())[:, 1].max() for each in figure.axes[0].collections]
    assert max(heights) == pytest.approx(4.55)
    assert len(figure.axes[0].collections) == 5  # the trials once as points, once as arrows


def test_the_page_needs_no_other_file_and_shows_each_trials_knobs() -> None:
    page = figures.page(TRIALS, TRIALS[:2], CAPTIONS)
    assert "cdn.plot.ly" not in page.split("Plotly.newPlot")[-1]
    assert len(page) > 1_000_000  # the script is inside
    assert "trial 1 \\u003cbr\\u003elr 0.31\\u003cbr\\u003eforgetting 0.25" in page


def test_the_knob_that_matters_is_the_important_one() -> None:
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=optuna.samplers.RandomSampler(seed=0))
    ranges: dict[str, Any] = {"matters": FloatDistribution(0, 1), "idle": FloatDistribution(0, 1)}
    for _ in range(40):
        proposal = study.ask(ranges)
        value = proposal.params["matters"]
        proposal.set_user_attr("scores", {"forgetting": value, "quality": 1 - value})
        study.tell(proposal, [value, 1 - value])
    shares = figures.importances(study, ["matters", "idle"])
    assert shares is not None
    assert shares.loc["matters", "forgetting"] > 0.9
    assert shares.loc["matters", "quality"] > 0.9
    assert figures.bars(shares, CAPTIONS).axes[0].get_yticklabels()[0].get_text() == "matters"


def test_few_trials_have_no_importances() -> None:
    study = optuna.create_study(directions=["minimize", "minimize"])
    assert figures.importances(study, ["matters"]) is None
