"""What a run of attacks publishes: success rates, tables, pictures and a note, and evidence of the version."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from pipelines import tracking
from pipelines.examination.attack_suite import AttackSuite
from pipelines.registry import attachments, model_versions
from safemax import metric_keys as keys
from safemax.evaluation.attack_results import AttackComparison, attack_metrics, attack_table
from safemax.reports.attack_figures import attack_figure
from safemax.reports.images_and_tables import as_markdown, as_text


def publish(
    address: str,
    suite: AttackSuite,
    results: Mapping[str, AttackComparison],
    about: Mapping[str, Any],
    seconds: Mapping[str, float],
    run: tracking.Run,
) -> None:
    """Log results to the run, attach them to the version, and print their table.

    Args:
        address: of the model.
        suite: the attacks.
        results: by attack.
        about: how the model was attacked, for the version's evidence; JSON.
        seconds: by what they were spent on.
        run: of the attacks.
    """
    rates, frame = attack_metrics(results), attack_table(results)
    run.log(rates)
    pictures = [
        run.picture(attack_figure(suite.attacks[name], comparison), f"attack/{name}")
        for name, comparison in results.items()
    ]
    run.table(frame.reset_index(), "attacks")
    spending = pd.DataFrame({"seconds": seconds}).rename_axis("what")
    run.table(spending.reset_index(), "seconds")
    opening = f"**{_summary(rates)}**\n\nAttacks on {model_versions.link(address)}; success in percent of the samples."
    run.note("\n\n".join([opening, as_markdown(frame, 1), *pictures]))
    if model_versions.is_registry_address(address):
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "attacks.json"
            path.write_text(json.dumps({"metrics": rates, "about": about}, indent=1, sort_keys=True) + "\n")
            attachments.attach(address, "attacks", run.id, path)
    print(f"\n{_summary(rates)}\n\n{as_text(frame, 1)}\n\n{as_text(spending, 1)}\n\n{run.url}  (after `make ui`)")


def _summary(rates: Mapping[str, float]) -> str:
    if keys.WORST_DELTA not in rates:
        return "No gold model was attacked for comparison, so success alone cannot tell a hidden class from one learned anew."
    worst = rates[keys.WORST_DELTA]
    if worst <= 0:
        return "No attack succeeds more often than on the gold model, which never saw the class."
    return (
        f"The strongest attack succeeds {worst:.1f} points more often than on the gold model, which never saw the class; "
        f"resilience {rates[keys.RESILIENCE]:.2f} (1 is best)."
    )
