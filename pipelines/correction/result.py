"""The result of a correction: metrics of base and corrected model, the cost, and the samples of both."""

from __future__ import annotations

from dataclasses import dataclass, field

import pandas as pd

from safemax import metric_keys as keys
from safemax.evaluation.samples import Samples
from safemax.evaluation.verdict import Verdict, verdict
from safemax.metrics.user_samplers import loss
from safemax.reports.images_and_tables import readable_table
from safemax.reports.numbers import duration, memory_size, percent, quantity

# Shown first, in this order; all metrics are on the run's page.
HEADLINE = (
    *(keys.UA_REJECT, keys.RECOGNISED, keys.REJECTED, keys.OTHER, keys.SECOND_UA_REJECT),
    *(keys.UA, keys.ENTROPY, keys.PRECISION, keys.COVERAGE),
    *(keys.ACCURACY, keys.FID_JUDGE, keys.RETAIN_KID, keys.WORST_SAMPLER_ACCURACY),
)


@dataclass(frozen=True)
class CorrectionResult:
    """The result of a correction.

    Args:
        before: metrics of the base.
        after: metrics of the corrected model.
        cost: minutes, memory and images that unlearning and measuring took, and facts of the method's prior.
        base: samples of the base.
        corrected: samples of the corrected model.
        earlier: of each class forgotten earlier, by name, how many of its samples are recognised now, in percent.
        root: metrics of the first base, the last ancestor that had forgotten nothing; None where the base itself had
            forgotten nothing, {} where that ancestor no longer exists.
    """

    before: dict[str, float]
    after: dict[str, float]
    cost: dict[str, float]
    base: Samples
    corrected: Samples
    earlier: dict[str, dict[str, float]] = field(default_factory=dict)
    root: dict[str, float] | None = None

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics of the corrected model, with what they changed and what they cost."""
        compared = (keys.ACCURACY, keys.FID_JUDGE, keys.RETAIN_KID)
        deltas = {f"{name}_delta": self.after[name] - self.before[name] for name in compared}
        earlier = {
            f"earlier/{key}_{name}": value for name, shares in self.earlier.items() for key, value in shares.items()
        }
        return {**self.after, **deltas, **loss(self.after, self.before), **earlier, **self.cost}

    @property
    def verdict(self) -> Verdict:
        """The verdict on the corrected model."""
        return verdict(self.after, self.before)

    @property
    def shown(self) -> pd.DataFrame:
        """The headline: one row per metric, with a column for the base and one for the corrected model."""
        return readable_table(self.before, self.after, [name for name in HEADLINE if name in self.after])

    @property
    def brief(self) -> str:
        """The numbers that matter most, in a line."""
        after, before = self.after, self.before
        return (
            f"UA {percent(after[keys.UA])}; recognised: {percent(after[keys.RECOGNISED])}, at most "
            f"{percent(after[keys.RECOGNISED + keys.HIGH])} at the 95 % level; accuracy on retained classes "
            f"{percent(after[keys.ACCURACY])} (base: {percent(before[keys.ACCURACY])}); FID "
            f"{quantity(after[keys.FID_JUDGE])} (base: {quantity(before[keys.FID_JUDGE])})."
        )

    @property
    def spending(self) -> str:
        """What the correction cost, in a line."""
        cost = self.cost
        setup, runtime, evaluation = (
            cost.get(key, 0.0) for key in (keys.SETUP_MINUTES, keys.RUNTIME_MINUTES, keys.EVALUATION_MINUTES)
        )
        search = f"; search {duration(cost[keys.SEARCH_MINUTES])}" if keys.SEARCH_MINUTES in cost else ""
        return (
            f"preparation {duration(setup)}, optimisation {duration(runtime)}, measuring {duration(evaluation)}, "
            f"peak memory {memory_size(cost.get(keys.PEAK_MEMORY_GB, 0.0))}{search}"
        )
