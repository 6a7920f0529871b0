"""An earlier run of attacks on the model under examination: its numbers and its pictures."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from mlflow.exceptions import MlflowException

from pipelines import tracking
from pipelines.registry import lineage
from pipelines.tracking import pages
from safemax import attacks
from safemax import metric_keys as keys
from safemax.errors import InputError
from safemax.reports.html_report import Picture


@dataclass(frozen=True)
class AttackRun:
    """A finished run of attacks; without an id, that there is none.

    Args:
        id: of the run.
        metrics: its attack metrics.
        url: of its page.
    """

    id: str | None
    metrics: dict[str, float]
    url: str = ""

    @classmethod
    def find(cls, address: str, option: str) -> AttackRun:
        """Return the run on a model that the option names: an id, auto (the newest), or none.

        Raises:
            InputError: there is no such run, or it attacked another model.
        """
        run_id = lineage.attack_run(address, option)
        if run_id is None:
            return cls(None, {})
        try:
            run = tracking.store().get_run(run_id)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            raise InputError(f"attack_run = {run_id} is not a run of this tracking store") from None
        if run.data.tags.get("version") != address:
            raise InputError(
                f"attack_run = {run_id} attacked {run.data.tags.get('version', 'no model')}, not {address}"
            )
        metrics = {key: value for key, value in run.data.metrics.items() if key.startswith(keys.ATTACK)}
        return cls(run_id, metrics, pages.address(pages.run_page(run.info.experiment_id, run_id)))

    def pictures(self) -> list[Picture]:
        """Download the run's pictures, one per attack."""
        if self.id is None:
            return []
        client = tracking.store()
        paths = [each.path for each in client.list_artifacts(self.id, "pictures/attack") if each.path.endswith(".png")]
        with tempfile.TemporaryDirectory() as scratch:
            return [
                Picture(Path(client.download_artifacts(self.id, path, scratch)).read_bytes(), _caption(Path(path).stem))
                for path in paths
            ]


def _caption(name: str) -> str:
    """Return what an attack does: the first sentence of its file."""
    attack = attacks.available().get(name)
    return (sys.modules[attack.__module__].__doc__ or name).split("\n")[0] if attack else name
