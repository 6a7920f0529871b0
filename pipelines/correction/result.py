"""What a correction came to: metrics before and after, what it cost, and what base and corrected model drew."""

from __future__ import annotations

from dataclasses import dataclass, field

import pandas as pd

from safemax.evaluation.measure import Samples
from safemax.reports.images_and_tables import table

# What a reader wants to see first, in this order; the rest of the metrics is on the run's page.
HEADLINE = (
    *("forget/ua_reject", "forget/recognised", "forget/rejected", "forget/other", "forget/second_ua_reject"),
    *("forget/ua", "forget/entropy", "forget/precision", "forget/coverage"),
    *("retain/accuracy", "retain/fid_judge", "retain/kid"),
)


@dataclass(frozen=True)
class CorrectionResult:
    """What a correction came to: metrics before and after, what it cost, and what base and corrected model drew.

    Where the model to correct had forgotten classes: of those that are not asked for again, how many of their samples are
    recognised now, by class; and the metrics of the first base, the last ancestor that had forgotten nothing, empty where it
    is gone.
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
        compared = ("retain/accuracy", "retain/fid_judge", "retain/kid")
        deltas = {f"{name}_delta": self.after[name] - self.before[name] for name in compared}
        tested = {
            f"earlier/{key}_{name}": value for name, found in self.earlier.items() for key, value in found.items()
        }
        return {**self.after, **deltas, **tested, **self.cost}

    @property
    def shown(self) -> pd.DataFrame:
        """The headline: a row a metric, base beside corrected."""
        return table({name: self.before[name] for name in HEADLINE if name in self.before}, self.after)

    @property
    def brief(self) -> str:
        """What a row of the registry's list of versions has room for."""
        after, before = self.after, self.before
        return (
            f"UA {after['forget/ua']:.3g} %, recognised at most {after['forget/recognised_high']:.2g} %, accuracy "
            f"{after['retain/accuracy']:.3g} % (base {before['retain/accuracy']:.3g}), FID {after['retain/fid_judge']:.3g} "
            f"(base {before['retain/fid_judge']:.3g}), {self.cost['cost/runtime_minutes']:.2g} minutes."
        )
