"""Measure a model without changing it, and write the page that a reviewer reads before a promotion.

What it still knows of some classes, how well it draws the others, what attacks brought back (`-e attack`, run before), what it
cost and where it comes from, beside the base; evidence/report.html in the run holds all of it and opens without a network.
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from mlflow.exceptions import MlflowException
from PIL import Image

from pipelines import tracking
from pipelines.cli.options import DataOptions, product
from pipelines.cli.parameters import with_defaults
from pipelines.cli.parser import main, parse
from pipelines.correction.retrained import GoldOptions
from pipelines.engine.signals import StopSignal, die_with_parent, stop_on_sigterm
from pipelines.registry import lineage, model_versions, registration
from safemax import attacks
from safemax.data.batches import to_float
from safemax.data.dataset import Dataset
from safemax.diffusion.model import Diffusion
from safemax.errors import InputError
from safemax.evaluation.measure import Evaluation, Samples, cached_samples, measure
from safemax.evaluation.retention import neighbours
from safemax.evaluation.verdict import Verdict, verdict
from safemax.judges.load import JudgeConfig, Judges, judges, reference
from safemax.knobs import check, knob
from safemax.reports.attack_figures import sheet
from safemax.reports.html_report import INTERVALS, Picture, Report, html
from safemax.reports.images_and_tables import as_markdown, as_text, compare_samples, table


@dataclass(frozen=True)
class EvaluateOptions:
    """The model to measure."""

    model: str = knob("models:/digits-ddpm@candidate", "models:/NAME@ALIAS, a folder, or a Hugging Face id")
    forget: str = knob("auto", "classes to look for, separated by commas; auto is all that the version has forgotten")
    beside: str = knob(
        "auto",
        "a second model to set beside it, by the same samplers, seeds and counts: auto (the version's base), none, "
        "a folder or an address",
    )
    attack_run: str = knob(
        "auto", "id of the run that attacked this model; auto is the newest on this version, or none"
    )
    name: str = knob("auto", "experiment; auto is DATA-ddpm")

    def __post_init__(self) -> None:
        check(self)


PARAMETERS: dict[str, type] = {
    "model": EvaluateOptions,
    "gold": with_defaults(GoldOptions, gold="kept"),
    "data": DataOptions,
    "evaluation": Evaluation,
    "judging": JudgeConfig,
}
GRID = 40  # samples of the forgotten classes in a picture of their own


@dataclass(frozen=True, eq=False)
class Measured:
    """A model's samples and the numbers they gave."""

    address: str
    samples: Samples
    metrics: dict[str, float]


@dataclass(frozen=True, eq=False)
class EvaluationContext:
    """What is measured, and how; classes that the model has forgotten too, and is not asked about, count nowhere."""

    dataset: Dataset
    forget: tuple[int, ...]
    earlier: tuple[int, ...]
    evaluation: Evaluation
    judges: Judges
    gold: Diffusion | None

    def measure(self, address: str, model: Diffusion) -> Measured:
        """Draw from a model and measure what came, from the cache where it drew the same before."""
        samples = cached_samples(model, self.forget, self.evaluation)
        gold = (
            None if self.gold is None else cached_samples(self.gold, self.forget, self.evaluation).without(self.earlier)
        )
        real = reference(self.dataset, self.judges).without(self.earlier)
        metrics = measure(samples.without(self.earlier), self.judges, real, self.forget, gold=gold)
        return Measured(address, samples, metrics)


def evaluate(argv: Sequence[str]) -> None:
    """Measure a model by the command line's parameters."""
    chosen = parse("python -m pipelines.evaluate", __doc__ or "", PARAMETERS, argv)
    stop = stop_on_sigterm()
    die_with_parent()
    subject, evaluation, dataset = chosen["model"], chosen["evaluation"], chosen["data"].load()
    experiment = product(subject.name, dataset.name)
    tracking.setup(experiment)
    address = model_versions.pinned(subject.model)
    lineage.refuse_other_data(address, dataset)
    forget = lineage.classes_of(address, subject.forget, dataset)
    beside, attacked = lineage.origin(address, subject.beside), lineage.attack_run(address, subject.attack_run)
    brought = _attacks(attacked, address)
    names = [dataset.class_names[k] for k in forget]
    params = {
        "model.source": address,
        "model.beside": beside,
        "model.gold": chosen["gold"].gold,
        "attack.run": attacked,
    }
    params |= {"data.name": dataset.name, "data.digest": dataset.digest, "data.forget": ",".join(names)}
    params |= {f"eval.{key}": value for key, value in evaluation.describe().items()}
    name = f"evaluate-{dataset.name}-forget{'+'.join(names)}"
    tags = {"kind": "evaluation", "version": address}
    with tracking.run(name, experiment=experiment, params=params, tags=tags) as run:
        run.dataset(dataset, "evaluation")
        model, task = _task(address, beside, chosen, dataset, forget, stop)
        with stop.interruptible():
            started = time.perf_counter()
            before = task.measure(beside, lineage.load(beside, dataset)) if beside else None
            after = task.measure(address, model)
            minutes = (time.perf_counter() - started) / 60
            _publish(task, before, after, attacked, brought, minutes, run)


def _task(
    address: str,
    beside: str | None,
    chosen: dict[str, Any],
    dataset: Dataset,
    forget: tuple[int, ...],
    stop: StopSignal,
) -> tuple[Diffusion, EvaluationContext]:
    model = lineage.load(address, dataset)
    gold = chosen["gold"].find(model, beside, dataset, forget, stop)
    with stop.interruptible():
        jury = judges(dataset, chosen["judging"], device=str(model.device))
    gone = map(dataset.class_names.index, lineage.forgotten(address))
    earlier = tuple(k for k in gone if k not in forget)
    return model, EvaluationContext(dataset, forget, earlier, chosen["evaluation"], jury, gold)


def _publish(
    task: EvaluationContext,
    before: Measured | None,
    after: Measured,
    attacked: str | None,
    brought: dict[str, float],
    minutes: float,
    run: tracking.Run,
) -> None:
    base = before.metrics if before else {}
    deltas = {
        f"{key}_delta": value - base[key] for key, value in after.metrics.items() if key in base and _differs(key)
    }
    run.log({**after.metrics, **deltas, "cost/evaluation_minutes": minutes})
    run.log({f"base/{key}": value for key, value in base.items()})
    found = verdict(after.metrics, base or None, brought)
    run.tag("verdict", found.outcome)
    run.tag("verdict.flags", ",".join(found.flags))
    run.json(task.judges.about, "judges")
    frame = table(base, after.metrics) if base else pd.DataFrame({"value": after.metrics}).rename_axis("metric")
    run.table(frame.reset_index(), "metrics")
    comparison = _comparison(task, before, after)
    picture = run.picture(comparison, "comparison")
    brief = frame.loc[[n for n in frame.index if not n.startswith("retain_class/") and not n.endswith(INTERVALS)]]
    run.note(f"{_title(before, after)}\n\n**{found.sentence}**\n\n{picture}\n\n{as_markdown(brief)}")
    report = Report(
        subject=after.address,
        forget=[task.dataset.class_names[k] for k in task.forget],
        neighbours=[task.dataset.class_names[k] for k in neighbours(reference(task.dataset, task.judges), task.forget)],
        verdict=found,
        metrics=after.metrics,
        protocol=task.evaluation.describe(),
        judges=task.judges.about,
        base=base,
        base_address=before.address if before else "",
        attacks=brought,
        pictures=[*_pictures(task, after), Picture(_png(comparison), f"{_title(before, after)}, the first samples of each class.")],
        attack_pictures=_attack_pictures(attacked),
        cost=_cost(after.address),
        lineage=_lineage(task, after.address, attacked, run),
    )  # fmt: skip
    _attach(after, base, found, html(report), run)
    print(
        f"\n{as_text(brief)}\n\n{found.sentence}\n\n{run.url}  (after `make ui`); evidence/report.html is among its artifacts"
    )


def _attach(after: Measured, base: dict[str, float], found: Verdict, page: str, run: tracking.Run) -> None:
    """Make page and panel the run's artifacts, and evidence of the version where it is one."""
    panel = {"metrics": after.metrics, "base_metrics": base, "verdict": found.outcome, "flags": found.flags}
    with tempfile.TemporaryDirectory() as scratch:
        files = {"report": Path(scratch) / "report.html", "panel": Path(scratch) / "panel.json"}
        files["report"].write_text(page, encoding="utf-8")
        files["panel"].write_text(json.dumps(panel, indent=1, sort_keys=True) + "\n")
        for kind, path in files.items():
            if after.address.startswith("models:"):
                registration.attach(after.address, kind, run.id, path)
            else:
                run.artifact(path, "evidence")


def _differs(key: str) -> bool:
    return key.startswith(("retain/", "neighbours/", "retain_class/")) and not key.endswith(INTERVALS)


def _attacks(run_id: str | None, address: str) -> dict[str, float]:
    if run_id is None:
        return {}
    try:
        found = tracking.store().get_run(run_id).data
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        raise InputError(f"attack_run = {run_id} is no run of this tracking store") from None
    if found.tags.get("version") != address:
        raise InputError(f"attack_run = {run_id} attacked {found.tags.get('version', 'no model')}, not {address}")
    return {key: value for key, value in found.metrics.items() if key.startswith("attack/")}


def _attack_pictures(run_id: str | None) -> list[Picture]:
    if run_id is None:
        return []
    client = tracking.store()
    with tempfile.TemporaryDirectory() as scratch:
        paths = [each.path for each in client.list_artifacts(run_id, "pictures/attack") if each.path.endswith(".png")]
        return [
            Picture(Path(client.download_artifacts(run_id, path, scratch)).read_bytes(), _about(Path(path).stem))
            for path in paths
        ]


def _about(name: str) -> str:
    """Return what an attack does, its file's first sentence."""
    found = attacks.available().get(name)
    return (sys.modules[found.__module__].__doc__ or name).split("\n")[0] if found else name


def _title(before: Measured | None, after: Measured) -> str:
    return f"{before.address} beside {after.address}" if before else after.address


def _comparison(task: EvaluationContext, before: Measured | None, after: Measured) -> Figure:
    models = ({"base": before.samples} if before else {}) | {"this model": after.samples}
    return compare_samples(models, task.dataset.class_names, task.forget, task.evaluation)


def _pictures(task: EvaluationContext, after: Measured) -> list[Picture]:
    said = []
    drawn, how = after.samples, task.evaluation
    for images, labels, sampler in (
        (drawn.images, drawn.labels, how.main_sampler),
        (drawn.second_images, drawn.second_labels, how.second_sampler),
    ):
        rows = [images[labels == k][: GRID // len(task.forget)] for k in task.forget]
        names = ", ".join(task.dataset.class_names[k] for k in task.forget)
        sheets = [_png(sheet(to_float(each), GRID // 2)) for each in rows]
        said += [Picture(each, f"ComparisonOptions to be of {names}, {sampler}.") for each in sheets]
    return said


def _png(picture: Figure | Image.Image) -> bytes:
    buffer = io.BytesIO()
    if isinstance(picture, Figure):
        picture.savefig(buffer, format="png", bbox_inches="tight")
    else:
        picture.save(buffer, format="png")
    return buffer.getvalue()


def _cost(address: str) -> dict[str, float]:
    if not address.startswith("models:"):
        return {}
    told = model_versions.evidence(address).get("metrics", {})
    return {key: value for key, value in told.items() if key.startswith("cost/")}


def _lineage(task: EvaluationContext, address: str, attacked: str | None, run: tracking.Run) -> dict[str, str]:
    facts = {"model": address}
    if address.startswith("models:"):
        found, evidence = model_versions.version_of(address), model_versions.evidence(address)
        facts |= {
            "made by run": str(found.run_id),
            "corrected from": str(evidence.get("parent", "nothing: it is a base")),
        }
        facts |= {key: str(evidence[key]) for key in ("parent_digest", "model_digest") if key in evidence}
        facts |= {"manifest": str(found.tags.get(model_versions.MANIFEST))}
        facts |= {
            key: str(value) for key, value in evidence.get("parameters", {}).items() if not key.startswith("eval.")
        }
    facts |= {"data.name": task.dataset.name, "data.digest": task.dataset.digest, "judges": task.judges.digest}
    facts |= {"measured by run": run.id, "attacked by run": attacked or "none"}
    return facts | {"written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")}


if __name__ == "__main__":
    main(evaluate)
