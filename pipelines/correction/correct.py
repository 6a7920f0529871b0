"""Carry out a correction: in a run of its own that ends in a version, or in an open run that registers nothing."""

from __future__ import annotations

from collections.abc import Callable

from pipelines import tracking
from pipelines.correction.correction import Correction, SearchProvenance
from pipelines.correction.correction_run import CorrectionRun
from pipelines.correction.result import CorrectionResult
from pipelines.engine.shared_draws import follow_draws, shared_draws
from pipelines.engine.signals import StopSignal, is_follower_rank
from pipelines.registry import lineage, model_versions, orphans
from safemax import metric_keys as keys
from safemax.diffusion.model import Diffusion
from safemax.training.hooks import Hooks


def correct(
    correction: Correction,
    stop: StopSignal,
    make_base: Callable[[], str] | None = None,
    planned: float | None = None,
) -> str:
    """Run a correction in an MLflow run of its own, register the result, print its table and return its address.

    Args:
        correction: what to do.
        stop: called before each step; True ends the run as KILLED, and the same command resumes it.
        make_base: makes the model to correct where `correction.source` does not exist yet, and returns its address.
        planned: minutes that a plan gave all of it; in the end they are compared with the minutes that it took.
    """
    if is_follower_rank():
        diffusion = Diffusion.load(model_versions.resolve(correction.source))
        correction.method.validate(diffusion)
        classes = lineage.class_split(correction.source, correction.forget, correction.dataset)
        correction.unlearn(diffusion, classes, Hooks(should_stop=stop))
        follow_draws(stop)
        return ""
    tracking.setup(correction.name)  # refuses before the first orphan is removed
    for line in orphans.remove_orphans(correction.name):
        print(f"removed what a killed run left behind: {line}")
    tags = {
        "kind": "correction",
        "unlearning.method": correction.method_name,
        "unlearning.forget": ",".join(correction.class_names),
    }
    with tracking.run(
        correction.run_name, experiment=correction.name, params=correction.params(), tags=tags,
        shown=correction.shown_params, planned=planned,
    ) as run:  # fmt: skip
        run.dataset(correction.dataset, "training")
        run.parameters(correction.parameters)
        parent = model_versions.resolve_alias(make_base() if make_base else correction.source)
        diffusion = Diffusion.load(model_versions.resolve(parent))
        under_way = CorrectionRun(correction, run, diffusion, parent)
        cost = under_way.unlearn(stop)
        with shared_draws():
            address = under_way.measure_and_register(cost, stop)
    under_way.clear()  # once the run has ended: until then the same command resumes, and finds the version
    return address


def measure_and_register(
    correction: Correction,
    run: tracking.Run,
    diffusion: Diffusion,
    parent: str,
    stop: StopSignal,
    *,
    cost: dict[str, float],
    provenance: SearchProvenance,
) -> str:
    """Measure and register a model that was unlearned before, as a correction says; return its address."""
    under_way = CorrectionRun(correction, run, diffusion, parent, provenance)
    under_way.load_judges(stop)
    under_way.parent_digest = Diffusion.load(model_versions.resolve(parent)).digest()
    return under_way.measure_and_register(cost, stop)


def run_unregistered(correction: Correction, run: tracking.Run, folder: str, stop: StopSignal) -> CorrectionResult:
    """Do in an open run all that `correct` does, but register nothing and move no alias.

    Args:
        correction: what to do.
        run: gets losses, metrics, pictures and note.
        folder: of the model that `correction.source` names.
        stop: called before each step.
    """
    under_way = CorrectionRun(correction, run, Diffusion.load(folder), folder)
    result = under_way.measure(under_way.unlearn(stop), stop)
    under_way.record(result)
    run.log(keys.charted(result.metrics))
    run.flush()
    under_way.clear()
    return result
