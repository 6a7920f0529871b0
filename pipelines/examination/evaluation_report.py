"""What an evaluation publishes: metrics, tables, pictures and a note on its run, and the page that a reviewer reads."""

from __future__ import annotations

import io
import json
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from pipelines import tracking
from pipelines.examination.attack_run import AttackRun
from pipelines.examination.evaluation import Evaluator, Measured
from pipelines.examination.subject import Subject
from pipelines.registry import attachments, lineage, model_versions, registration
from pipelines.tracking import pages
from safemax import metric_keys as keys
from safemax.data.batches import to_float
from safemax.evaluation.verdict import Verdict, verdict
from safemax.judges.reference import reference
from safemax.metrics.retention import neighbours
from safemax.metrics.user_samplers import loss
from safemax.reports.attack_figures import tile_sheet
from safemax.reports.html_report import Picture, Report, html
from safemax.reports.images_and_tables import as_markdown, as_text, compare_samples, metrics_table, readable_table

GRID = 40  # samples of the forgotten classes in a picture of their own


def publish(
    evaluator: Evaluator,
    before: Measured | None,
    after: Measured,
    attack_run: AttackRun,
    minutes: float,
    run: tracking.Run,
) -> None:
    """Log an evaluation to its run, attach its page to the version, and print its table.

    Args:
        evaluator: measured both.
        before: the base, None where there is none.
        after: the model under examination.
        attack_run: attacks on that model.
        minutes: that measuring took.
        run: of the evaluation.
    """
    base = before.metrics if before else {}
    result = verdict(after.metrics, base or None, attack_run.metrics)
    _log_metrics(evaluator, base, after, result, minutes, run)
    run.table(metrics_table(base, after.metrics).reset_index(), "metrics")
    comparison = _comparison(evaluator, before, after)
    picture = run.picture(comparison, "comparison")
    whole = [n for n in after.metrics if not n.startswith(keys.RETAIN_CLASS) and not n.endswith(keys.UNCERTAINTY)]
    brief, title = readable_table(base, after.metrics, whole), _title(before, after)
    page = pages.artifact_page(run.experiment_id, run.id, "evidence/report.html")
    opening = f"**{result.headline}** {result.grounds}\n\n{title}. [The whole report]({page})"
    run.note(f"{opening}\n\n{picture}\n\n{as_markdown(brief)}")
    caption = f"The first samples of each class, from {after.address}{' and its base' if before else ''}."
    pictures = [*_pictures(evaluator, after), Picture(_png(comparison), caption)]
    report = _report(evaluator, before, after, result, attack_run, pictures, run)
    _attach(after, base, result, html(report), run)
    if model_versions.is_registry_address(after.address):
        attachments.mention_report(after.address, page, result.sentence)
    compared = f", compared with {before.address}" if before else ""
    print(f"\n{after.address}{compared}\n\n{result.headline}\n{result.grounds}\n\n{as_text(brief)}\n")
    print(f"this run:    {run.url}\nthe report:  {pages.address(page)}\n(links open after `make ui`)")


def _log_metrics(
    evaluator: Evaluator,
    base: dict[str, float],
    after: Measured,
    result: Verdict,
    minutes: float,
    run: tracking.Run,
) -> None:
    deltas = {
        f"{key}_delta": value - base[key] for key, value in after.metrics.items() if key in base and _has_delta(key)
    }
    run.log(keys.charted({**after.metrics, **deltas, **loss(after.metrics, base), keys.EVALUATION_MINUTES: minutes}))
    run.tag("verdict", result.outcome)
    run.tag("verdict.flags", ",".join(result.flags))
    run.json(evaluator.judges.about, "judges")


def _has_delta(key: str) -> bool:
    return key.startswith((keys.RETAIN, keys.NEIGHBOURS, keys.RETAIN_CLASS)) and not key.endswith(keys.UNCERTAINTY)


def _report(
    evaluator: Evaluator,
    before: Measured | None,
    after: Measured,
    result: Verdict,
    attack_run: AttackRun,
    pictures: list[Picture],
    run: tracking.Run,
) -> Report:
    dataset, forget = evaluator.subject.dataset, evaluator.subject.classes.forget
    nearest = neighbours(reference(dataset, evaluator.judges), forget)
    return Report(
        address=after.address,
        forget=evaluator.subject.class_names,
        neighbours=[dataset.class_names[k] for k in nearest],
        verdict=result,
        metrics=after.metrics,
        protocol=evaluator.evaluation.describe(),
        judges=evaluator.judges.about,
        base=before.metrics if before else {},
        base_address=before.address if before else "",
        attacks=attack_run.metrics,
        pictures=pictures,
        attack_pictures=attack_run.pictures(),
        cost=_cost(after.address),
        lineage=_lineage(evaluator, attack_run, run),
        links=_links(evaluator.subject, attack_run, run),
        method=_method(after.address),
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _attach(after: Measured, base: dict[str, float], result: Verdict, page: str, run: tracking.Run) -> None:
    """Make page and panel artifacts of the run, and evidence of the version if the model is one."""
    panel = {"metrics": after.metrics, "base_metrics": base, "verdict": result.outcome, "flags": result.flags}
    with tempfile.TemporaryDirectory() as scratch:
        files = {"report": Path(scratch) / "report.html", "panel": Path(scratch) / "panel.json"}
        files["report"].write_text(page, encoding="utf-8")
        files["panel"].write_text(json.dumps(panel, indent=1, sort_keys=True) + "\n")
        for kind, path in files.items():
            if model_versions.is_registry_address(after.address):
                attachments.attach(after.address, kind, run.id, path)
            else:
                run.artifact(path, "evidence")


def _title(before: Measured | None, after: Measured) -> str:
    compared = f", compared with {model_versions.link(before.address)}" if before else ""
    return f"{model_versions.link(after.address)}{compared}"


def _comparison(evaluator: Evaluator, before: Measured | None, after: Measured) -> Figure:
    models = ({"base": before.samples} if before else {}) | {"this model": after.samples}
    subject = evaluator.subject
    return compare_samples(models, subject.dataset.class_names, subject.classes.forget, evaluator.evaluation)


def _pictures(evaluator: Evaluator, after: Measured) -> list[Picture]:
    """Return sheets of samples of each forgotten class, under both samplers."""
    samples, evaluation, subject = after.samples, evaluator.evaluation, evaluator.subject
    names, forget = ", ".join(subject.class_names), subject.classes.forget
    pictures = []
    for images, labels, sampler in (
        (samples.images, samples.labels, evaluation.main_sampler),
        (samples.second_images, samples.second_labels, evaluation.second_sampler),
    ):
        rows = [images[labels == k][: GRID // len(forget)] for k in forget]
        sheets = [_png(tile_sheet(to_float(each), GRID // 2)) for each in rows]
        pictures += [Picture(each, f"Samples of {names}: {sampler.words}.") for each in sheets]
    return pictures


def _png(picture: Figure | Image.Image) -> bytes:
    buffer = io.BytesIO()
    if isinstance(picture, Figure):
        picture.savefig(buffer, format="png", bbox_inches="tight")
    else:
        picture.save(buffer, format="png")
    return buffer.getvalue()


def _cost(address: str) -> dict[str, float]:
    if not model_versions.is_registry_address(address):
        return {}
    metrics = model_versions.evidence(address).get("metrics", {})
    return {key: value for key, value in metrics.items() if key.startswith(keys.COST)}


def _lineage(evaluator: Evaluator, attack_run: AttackRun, run: tracking.Run) -> dict[str, str]:
    address, dataset = evaluator.subject.address, evaluator.subject.dataset
    facts = {"model": address}
    if model_versions.is_registry_address(address):
        facts |= _version_lineage(address)
    facts |= {"data.name": dataset.name, "data.digest": dataset.digest, "judges": evaluator.judges.digest}
    return facts | {"measured by run": run.id, "attacked by run": attack_run.id or "none"}


def _links(subject: Subject, attack_run: AttackRun, run: tracking.Run) -> dict[str, str]:
    """Return the pages of the runs and versions that the report names, by the name that it gives them."""
    links = {run.id: run.url, str(attack_run.id): attack_run.url}
    links |= {address: model_versions.url(address) for address in (subject.address, subject.base) if address}
    if model_versions.is_registry_address(subject.address):
        version = model_versions.version_of(subject.address)
        links |= lineage.run_link(version.run_id)
        if parent := version.tags.get("parent"):
            links[parent] = model_versions.url(parent)
    return {name: address for name, address in links.items() if address}


def _method(address: str) -> str:
    """Return the method that made a version, "" where none is known."""
    if not model_versions.is_registry_address(address):
        return ""
    return str(model_versions.version_of(address).tags.get("unlearning.method", ""))


def _version_lineage(address: str) -> dict[str, str]:
    version, evidence = model_versions.version_of(address), model_versions.evidence(address)
    facts = {
        "made by run": str(version.run_id),
        "images": f"{version.tags.get(registration.SHAPE, '-')}, architecture {version.tags.get('architecture', '-')}",
        "corrected from": str(evidence.get("parent", "nothing: it is a base")),
    }
    facts |= {key: str(evidence[key]) for key in ("parent_digest", "model_digest") if key in evidence}
    facts |= {"manifest": str(version.tags.get(model_versions.MANIFEST))}
    parameters = evidence.get("parameters", {})
    return facts | {key: str(value) for key, value in parameters.items() if not key.startswith("eval.")}
