"""What a search shows: the table of its trials, the front as a picture and as a page, the history, the importances."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import optuna
import pandas as pd
import plotly.graph_objects as go
from matplotlib.figure import Figure
from optuna.trial import FrozenTrial, TrialState

from hpo.request import Request

FLOOR = 1e-6  # probabilities below it are drawn at it, on a logarithmic axis
_KEPT = ("forgetting", "quality", "joint", "accuracy_drop", "minutes")

Point = tuple[float, float]


@dataclass(frozen=True)
class Captions:
    """What the figures say about a study.

    Args:
        title: one line.
        quality: name of the quality score, such as "FID of retained classes minus the base's".
    """

    title: str
    quality: str


def captions(request: Request) -> Captions:
    """Return the captions of a search."""
    distance = request.search.quality.upper()
    return Captions(f"{request.method_name}, forget {request.class_names}", f"{distance} of retained classes - base's")


def table(trials: Sequence[FrozenTrial], names: Sequence[str]) -> pd.DataFrame:
    """Return a row a trial: state, searched knobs, scores, UA_reject, retained accuracy, and how often its worker died."""
    return pd.DataFrame([_row(each, names) for each in trials]).set_index("trial")


def _row(trial: FrozenTrial, names: Sequence[str]) -> dict[str, object]:
    scores, metrics = trial.user_attrs.get("scores", {}), trial.user_attrs.get("metrics", {})
    return {
        "trial": trial.number,
        "state": trial.state.name.lower(),
        **{name: trial.params.get(name, math.nan) for name in names},
        **{key: scores.get(key, math.nan) for key in _KEPT},
        "ua_reject": metrics.get("forget/ua_reject", math.nan),
        "accuracy": metrics.get("retain/accuracy", math.nan),
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
    """Return the hypervolume after each completed trial; trials that break the constraint add nothing."""
    points: list[Point] = []
    path = []
    for each in trials:
        if is_allowed(each):
            points.append(place(each))
        path.append(hypervolume(points, reference))
    return path


def place(trial: FrozenTrial) -> Point:
    """Return a completed trial's forgetting and quality."""
    return trial.user_attrs["scores"]["forgetting"], trial.user_attrs["scores"]["quality"]


def is_allowed(trial: FrozenTrial) -> bool:
    """Return whether a completed trial keeps to the constraint."""
    return max(trial.constraints.values(), default=0) <= 0


def front(
    trials: Sequence[FrozenTrial], members: Sequence[FrozenTrial], captions: Captions, winner: int | None = None
) -> Figure:
    """Return the trials in the plane of forgetting and quality, the front joined by a line."""
    figure = Figure(figsize=(6.4, 4.4), dpi=110, layout="constrained")
    axis = figure.subplots()
    for allowed in (True, False):
        shown = [place(each) for each in trials if is_allowed(each) is allowed]
        label = "trial" if allowed else "trial that costs too much accuracy"
        axis.scatter(*_columns(shown), s=22, color="tab:blue" if allowed else "silver", label=label if shown else None)
    axis.plot(*_columns(sorted(place(each) for each in members)), color="tab:blue", lw=1, label="front")
    defaults, chosen = ([place(each) for each in trials if each.number == n] for n in (0, winner))
    axis.scatter(*_columns(defaults), s=30, marker="s", color="black", label="defaults")
    if chosen:
        axis.scatter(*_columns(chosen), s=150, marker="*", color="crimson", label=f"trial {winner}, chosen")
    axis.axhline(0, color="gray", lw=0.8, ls=":")
    axis.set(xscale="log", xlabel="probability of the forgotten class (reject judge)", ylabel=captions.quality)
    axis.set_title(captions.title, fontsize=10)
    axis.legend(fontsize=8)
    return figure


def _columns(points: Sequence[Point]) -> tuple[list[float], list[float]]:
    return [max(x, FLOOR) for x, _ in points], [y for _, y in points]


def page(trials: Sequence[FrozenTrial], members: Sequence[FrozenTrial], captions: Captions) -> str:
    """Return the front as a page of its own (plotly's script included): hover over a trial to read its knobs."""
    best = {each.number for each in members}
    figure = go.Figure()
    for name, chosen in (
        ("front", [each for each in trials if each.number in best]),
        ("other trials", [each for each in trials if each.number not in best and is_allowed(each)]),
        ("trials that cost too much accuracy", [each for each in trials if not is_allowed(each)]),
    ):
        x, y = _columns([place(each) for each in chosen]) if chosen else ([], [])
        figure.add_scatter(
            x=x, y=y, mode="markers", name=name, text=[_hover(each) for each in chosen], hoverinfo="text"
        )
    figure.update_layout(
        title=captions.title, yaxis_title=captions.quality, template="plotly_white",
        xaxis={"type": "log", "title": "probability of the forgotten class (reject judge)"},
    )  # fmt: skip
    return figure.to_html(include_plotlyjs=True)


def _hover(trial: FrozenTrial) -> str:
    facts = {f"trial {trial.number}": "", **trial.params, **trial.user_attrs["scores"]}
    return "<br>".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in facts.items()
    )


def history(trials: Sequence[FrozenTrial], reference: Point, captions: Captions) -> Figure:
    """Return hypervolume, forgetting and quality over the completed trials."""
    figure = Figure(figsize=(6.4, 6.0), dpi=110, layout="constrained")
    axes = figure.subplots(3, 1, sharex=True)
    numbers = [each.number for each in trials]
    x, y = _columns([place(each) for each in trials])
    axes[0].plot(numbers, volumes(trials, reference), drawstyle="steps-post")
    axes[0].set_ylabel("hypervolume")
    axes[1].scatter(numbers, x, s=14)
    axes[1].set(yscale="log", ylabel="forgetting")
    axes[2].scatter(numbers, y, s=14)
    axes[2].set(ylabel="quality", xlabel="trial")
    axes[0].set_title(captions.title, fontsize=10)
    return figure


def importances(study: optuna.Study, names: Sequence[str]) -> pd.DataFrame | None:
    """Return each searched knob's share in the spread of forgetting and quality; None where too few trials tell."""
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    varied = [name for name in names if len({each.params.get(name) for each in done}) > 1]
    if len(done) < 8 or not varied:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna warns that low values are taken for good, as they are here
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
    axis.set(xlabel="importance (PED-ANOVA)")
    axis.set_title(captions.title, fontsize=10)
    axis.legend(fontsize=8)
    return figure
