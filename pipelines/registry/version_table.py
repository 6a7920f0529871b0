"""The versions of a registered model as a table: method, forgotten classes, metrics, cost, verdict, aliases, parent."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import pandas as pd
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from pipelines import tracking
from safemax import metric_keys as keys

# Columns of the table, and the metrics that they show: the first of each that a version has.
TEXTS = ("method", "forgotten", "verdict", "aliases", "parent", "images")
NUMBERS: dict[str, tuple[str, ...]] = {
    "ua": (keys.UA,),
    "recognised": (keys.RECOGNISED,),
    "recognised_high": (keys.RECOGNISED + keys.HIGH,),
    "accuracy": (keys.ACCURACY,),
    "fid": (keys.FID_INCEPTION, keys.FID_JUDGE),
    "minutes": (keys.RUNTIME_MINUTES,),
    "gb": (keys.PEAK_MEMORY_GB,),
}
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


def rows(name: str) -> list[dict[str, object]]:
    """Return the columns of each version, oldest first, and beside them every metric by its key as a float."""
    client = tracking.store()
    aliases: dict[str, list[str]] = {}
    for alias, number in client.get_registered_model(name).aliases.items():
        aliases.setdefault(str(number), []).append(alias)
    versions = tracking.search_all(client.search_model_versions, f"name='{name}'")
    versions.sort(key=lambda version: int(version.version))
    return [_row(each, aliases.get(str(each.version), [])) for each in versions]


def table(rows: Sequence[Mapping[str, object]]) -> pd.DataFrame:
    """Return rows as a table of the columns, indexed by version."""
    columns = ["version", *TEXTS[:2], *NUMBERS, *TEXTS[2:]]
    return pd.DataFrame([[row[name] for name in columns] for row in rows], columns=columns).set_index("version")


def _row(version: ModelVersion, aliases: Sequence[str]) -> dict[str, object]:
    tags = version.tags
    tagged = {key: float(text) for key, text in tags.items() if "/" in key and NUMBER.fullmatch(text)}
    metrics: dict[str, object] = {**_metrics_of_run(version.run_id), **tagged}
    short = {
        name: next((metrics[key] for key in choices if key in metrics), math.nan) for name, choices in NUMBERS.items()
    }
    texts = {
        "method": tags.get("unlearning.method", tags.get("kind", "")),
        "forgotten": tags.get("forgotten", ""),
        "verdict": tags.get("verdict", ""),
        "aliases": ",".join(sorted(aliases)),
        "parent": tags.get("parent", "").rpartition("/")[2],
        "images": f"{tags.get('image_size', '')} {tags.get('architecture', '')}".strip(),
    }
    return {"version": str(version.version), **metrics, **short, **texts}


def _metrics_of_run(run_id: str | None) -> dict[str, float]:
    """Return the metrics of the run that made a version, none if it was deleted: tags hold only the most important ones."""
    try:
        return dict(tracking.store().get_run(run_id).data.metrics) if run_id else {}
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return {}
