"""Tables and figures of a search: its trials, the front as a picture and as a page, the history, the importances."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
import pandas as pd
import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from optuna.trial import FrozenTrial, TrialState

from hpo.config import SearchConfig
from safemax import metric_keys as keys
from safemax.reports.numbers import quantity

_FRONT, _OTHER, _COSTLY = "#1f77b4", "lightsteelblue", "gainsboro"
_X = "probability of the forgotten class (judges with a reject class)"
_SCORES = ("forgetting", "quality", "joint", "accuracy_drop", "minutes")

Point = tuple[float, float]


@dataclass(frozen=True)
class Captions:
    """Text of the figures of a study.

    Args:
        title: one line.
        quality: name of the quality score, such as "FID of retained classes minus the base's".
    """

    title: str
    quality: str


def captions(config: SearchConfig) -> Captions:
    """Return the captions of a search."""
    distance = config.search.quality.upper()
    return Captions(f"{config.method_name}, forget {config.class_names}", f"{distance} of retained classes - base's")


def readable(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a table with its numbers as text; what loses least accuracy comes first where the table says so."""
    ordered = frame.sort_values("accuracy_drop") if "state" in frame else frame
    return ordered.map(lambda value: quantity(value) if isinstance(value, int | float) else str(value))


def table(trials: Sequence[FrozenTrial], names: Sequence[str]) -> pd.DataFrame:
    """Return one row per trial: state, searched knobs, scores, UA_reject, retained accuracy, and how often its worker died."""
    return pd.DataFrame([_row(each, names) for each in trials]).set_index("trial")


def _row(trial: FrozenTrial, names: Sequence[str]) -> dict[str, object]:
    scores, metrics = trial.user_attrs.get("scores", {}), trial.user_attrs.get("metrics", {})
    return {
        "trial": trial.number,
        "state": trial.state.name.lower(),
        **{name: trial.params.get(name, math.nan) for name in names},
        **{key: scores.get(key, math.nan) for key in _SCORES},
        "ua_reject": metrics.get(keys.UA_REJECT, math.nan),
        "accuracy": metrics.get(keys.ACCURACY, math.nan),
        "deaths": len(trial.user_attrs.get("deaths", [])) + len(trial.system_attrs.get("retry_history", [])),
    }


def hypervolume(points: Sequence[Point], reference: Point) -> float:
    """Return the share of the rectangle from (0, 0) to the reference that the points dominate (both axes minimised).

    More than 1 where a point lies below 0: quality better than the base's.
    """
    area, height = 0.0, reference[1]
    for x, y in sorted(points):
        if x < reference[0] and y < height:
            area += (reference[0] - x) * (height - y)
            height = y
    return area / (reference[0] * reference[1])


def volumes(trials: Sequence[FrozenTrial], reference: Point) -> list[float]:
    """Return the hypervolume after each completed trial; trials outside the constraint add nothing."""
    points: list[Point] = []
    path = []
    for each in trials:
        if is_allowed(each):
            points.append(point_of(each))
        path.append(hypervolume(points, reference))
    return path


def point_of(trial: FrozenTrial) -> Point:
    """Return a completed trial's forgetting and quality."""
    return trial.user_attrs["scores"]["forgetting"], trial.user_attrs["scores"]["quality"]


def is_allowed(trial: FrozenTrial) -> bool:
    """Return whether a completed trial is within the constraint."""
    return max(trial.constraints.values(), default=0) <= 0


def front(
    trials: Sequence[FrozenTrial],
    members: Sequence[FrozenTrial],
    captions: Captions,
    winner: int | None = None,
    again: Mapping[int, Point] | None = None,
) -> Figure:
    """Return the trials in the plane of forgetting and quality; the front attains what lies above its steps.

    Args:
        trials: the completed ones.
        members: those on the front.
        captions: text of the figure.
        winner: number of the chosen trial.
        again: points of some trials on fresh seeds, by number.
    """
    figure = Figure(figsize=(6.8, 4.8), dpi=120, layout="constrained")
    axis, top = figure.subplots(), _top(trials, members)
    for label, color, group in _groups(trials, members):
        _scatter(
            axis, [point_of(each) for each in group], top, s=30 if label == "front" else 18, color=color, label=label
        )
    axis.step(*_columns(_stairs(members)), where="post", color=_FRONT, lw=1)
    for before, after in ((point_of(each), again[each.number]) for each in trials if again and each.number in again):
        axis.plot(*_columns([before, after], top), color=_FRONT, lw=0.6, ls=":")
    _scatter(axis, list((again or {}).values()), top, s=30, facecolor="white", edgecolor=_FRONT, label="on fresh seeds")
    defaults, chosen = ([point_of(each) for each in trials if each.number == n] for n in (0, winner))
    _scatter(axis, defaults, top, s=45, marker="s", color="black", label="defaults (trial 0)")
    _scatter(axis, chosen, top, s=170, marker="*", color="crimson", label=f"trial {winner}, chosen", zorder=4)
    axis.axhline(0, color="gray", lw=0.8, ls=":")
    axis.set(xscale="log", xlabel=_X, ylabel=captions.quality)
    axis.set_title(captions.title, fontsize=10)
    axis.legend(fontsize=8)
    return figure


def _groups(trials: Sequence[FrozenTrial], members: Sequence[FrozenTrial]) -> list[tuple[str, str, list[FrozenTrial]]]:
    """Return label, color and trials of each group, in drawing order."""
    best = {each.number for each in members}
    others = [each for each in trials if each.number not in best]
    return [
        ("costs too much accuracy", _COSTLY, [each for each in others if not is_allowed(each)]),
        ("trial", _OTHER, [each for each in others if is_allowed(each)]),
        ("front", _FRONT, list(members)),
    ]


def _stairs(members: Sequence[FrozenTrial]) -> list[Point]:
    """Return the corners of the area that the members attain; with more than two objectives some members lie above them."""
    corners: list[Point] = []
    for point in sorted(point_of(each) for each in members):
        if not corners or point[1] < corners[-1][1]:
            corners.append(point)
    return corners


def _top(trials: Sequence[FrozenTrial], members: Sequence[FrozenTrial]) -> float:
    """Return the end of the quality axis; inf where all trials fit.

    Front, defaults and three quarters of the trials are below it. One ruined model far above would compress all others; what
    is above the end is drawn as an arrow at the edge.
    """
    heights = sorted(point_of(each)[1] for each in trials)
    shown = [point_of(each)[1] for each in (*members, *trials[:1])]
    top = 1.3 * max([1.0, *shown, *heights[: math.ceil(0.75 * len(heights))]])
    return top if heights and heights[-1] > 1.5 * top else math.inf


def _scatter(axis: Axes, points: Sequence[Point], top: float, **style: Any) -> None:
    inside, beyond = ([each for each in points if (each[1] <= top) is within] for within in (True, False))
    label = style.pop("label")
    if inside:
        axis.scatter(*_columns(inside), label=label, **style)
    if beyond:
        axis.scatter(*_columns(beyond, top), **style | {"marker": "^"}, label=None if inside else label)


def _columns(points: Sequence[Point], top: float = math.inf) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [min(y, top) for _, y in points]


def page(
    trials: Sequence[FrozenTrial], members: Sequence[FrozenTrial], captions: Captions, winner: int | None = None
) -> str:
    """Return the front as an HTML page, plotly's script included: hover over a trial to read its knobs."""
    figure, top, joined = go.Figure(), _top(trials, members), len(_stairs(members)) == len(members)
    marked = [
        ("defaults (trial 0)", "black", "square", [each for each in trials if each.number == 0]),
        (f"trial {winner}, chosen", "crimson", "star", [each for each in trials if each.number == winner]),
    ]
    groups = [(label, color, "circle", chosen) for label, color, chosen in _groups(trials, members)]
    for label, color, symbol, chosen in (each for each in (*groups, *marked) if each[-1]):
        ordered = sorted(chosen, key=point_of)
        x, y = _columns([point_of(each) for each in ordered])
        figure.add_scatter(
            x=x, y=y, name=label, text=[_hover(each) for each in ordered], hoverinfo="text",
            mode="lines+markers" if label == "front" and joined else "markers", line={"shape": "hv", "width": 1},
            marker={"color": color, "symbol": symbol, "size": 8 if symbol == "circle" else 13},
        )  # fmt: skip
    figure.update_layout(
        title=captions.title, template="plotly_white", height=640, yaxis_title=captions.quality,
        xaxis={"type": "log", "title": _X, "exponentformat": "power", "dtick": 1},
    )  # fmt: skip
    if top < math.inf and members:
        figure.update_yaxes(range=[min(point_of(each)[1] for each in members) - 0.1 * top, top])
    return figure.to_html(include_plotlyjs=True)


def _hover(trial: FrozenTrial) -> str:
    facts = {f"trial {trial.number}": "", **trial.params, **trial.user_attrs["scores"]}
    return "<br>".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in facts.items()
    )


def history(trials: Sequence[FrozenTrial], reference: Point, captions: Captions) -> Figure:
    """Return hypervolume, forgetting and quality over the completed trials; an arrow is a quality above the axis."""
    figure = Figure(figsize=(6.4, 6.0), dpi=110, layout="constrained")
    axes = figure.subplots(3, 1, sharex=True)
    points, top = [(each.number, *point_of(each)) for each in trials], _top(trials, [])
    axes[0].plot([n for n, _, _ in points], volumes(trials, reference), drawstyle="steps-post", color=_FRONT)
    axes[0].set_ylabel("hypervolume")
    axes[1].scatter([n for n, _, _ in points], [x for _, x, _ in points], s=14, color=_FRONT)
    axes[1].set(yscale="log", ylabel="forgetting")
    for marker, beyond in (("o", False), ("^", True)):
        shown = [(n, min(y, top)) for n, _, y in points if (y > top) is beyond]
        axes[2].scatter([n for n, _ in shown], [y for _, y in shown], s=14, marker=marker, color=_FRONT)
    axes[2].set(ylabel="quality", xlabel="trial")
    axes[0].set_title(captions.title, fontsize=10)
    return figure


def importances(study: optuna.Study, names: Sequence[str]) -> pd.DataFrame | None:
    """Return each searched knob's share in the spread of forgetting and quality; None where there are too few trials."""
    completed = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    varied = [name for name in names if len({each.params.get(name) for each in completed}) > 1]
    if len(completed) < 8 or not varied:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna warns that it treats low values as good, as they are here
        shares = {
            key: optuna.importance.get_param_importances(study, params=varied, target=_score(key))
            for key in ("forgetting", "quality")
        }
    return pd.DataFrame(shares).loc[varied].rename_axis("knob")


def _score(key: str) -> Callable[[FrozenTrial], float]:
    return lambda trial: trial.user_attrs["scores"][key]


def bars(shares: pd.DataFrame, captions: Captions) -> Figure:
    """Return the importances as bars."""
    figure = Figure(figsize=(6.4, 1.2 + 0.5 * len(shares)), dpi=110, layout="constrained")
    axis = figure.subplots()
    for i, (name, column) in enumerate(shares.items()):
        axis.barh([j + 0.38 * i for j in range(len(shares))], column, height=0.36, label=str(name))
    axis.set_yticks([j + 0.19 for j in range(len(shares))], list(shares.index))
    axis.invert_yaxis()
    axis.set(xlabel="importance (PED-ANOVA)")
    axis.set_title(captions.title, fontsize=10)
    axis.legend(fontsize=8)
    return figure
