"""The result of a correction: metrics of base and corrected model, the cost, and the samples of both."""

from __future__ import annotations

from dataclasses import dataclass, field

import pandas as pd

from safemax import metric_keys as keys
from safemax.evaluation.samples import Samples
from safemax.metrics.user_samplers import loss
from safemax.reports.images_and_tables import metrics_table

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
    def shown(self) -> pd.DataFrame:
        """The headline: one row per metric, with a column for the base and one for the corrected model."""
        return metrics_table({name: self.before[name] for name in HEADLINE if name in self.before}, self.after)

    @property
    def brief(self) -> str:
        """One line, for the registry's list of versions."""
        after, before = self.after, self.before
        return (
            f"UA {after[keys.UA]:.3g} %, recognised at most {after[keys.RECOGNISED + keys.HIGH]:.2g} %, accuracy "
            f"{after[keys.ACCURACY]:.3g} % (base {before[keys.ACCURACY]:.3g}), FID {after[keys.FID_JUDGE]:.3g} "
            f"(base {before[keys.FID_JUDGE]:.3g}), {self.cost[keys.RUNTIME_MINUTES]:.2g} minutes."
        )
