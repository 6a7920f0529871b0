"""Measure a model without changing it: what it still knows of some classes, and how well it draws the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from pipelines import registry, tracking
from pipelines.command import main, parse
from pipelines.process import die_with_parent, stop_on_sigterm
from pipelines.request import Data, Forget
from safemax.data import parse_classes
from safemax.diffusion import Diffusion
from safemax.evaluation import Evaluation, kept_draw, measure
from safemax.judging import Judging, judges, reference
from safemax.knobs import check, knob
from safemax.report import as_markdown, as_text, compare_samples, table


@dataclass(frozen=True)
class Subject:
    """The model to measure."""

    model: str = knob("models:/digits-ddpm@candidate", "models:/NAME@ALIAS, a folder, or a Hugging Face id")
    beside: str = knob("none", "a second model to set beside it, by the same samplers, seeds and counts")
    name: str = knob("auto", "experiment; auto is DATA-ddpm")

    def __post_init__(self) -> None:
        check(self)


PARAMETERS: dict[str, type] = {
    "model": Subject,
    "data": Data,
    "forget": Forget,
    "evaluation": Evaluation,
    "judging": Judging,
}


def evaluate(argv: Sequence[str]) -> None:
    """Measure one model, or two side by side, by the command line's parameters."""
    chosen = parse("python -m pipelines.evaluate", __doc__ or "", PARAMETERS, argv)
    stop = stop_on_sigterm()
    die_with_parent()
    subject, evaluation = chosen["model"], chosen["evaluation"]
    dataset = chosen["data"].load()
    forget = parse_classes(chosen["forget"].forget, dataset.class_names)
    experiment = f"{dataset.name}-ddpm" if subject.name == "auto" else subject.name
    tracking.setup(experiment)
    sources = [each for each in (subject.beside, subject.model) if each != "none"]
    models = [Diffusion.load(registry.resolve(source)) for source in sources]
    params = {"model.source": subject.model, "model.beside": subject.beside, "data.name": dataset.name}
    params |= {f"eval.{key}": value for key, value in evaluation.describe().items()}
    name = f"evaluate-{dataset.name}-forget{'+'.join(dataset.class_names[k] for k in forget)}"
    with tracking.run(name, experiment=experiment, params=params, tags={"kind": "evaluation"}) as run, stop.at_once():
        run.dataset(dataset, "evaluation")
        samples = [kept_draw(model, forget, evaluation) for model in models]
        judge = judges(dataset, chosen["judging"], device=str(models[0].device))
        real = reference(dataset, judge)
        metrics = [measure(each, judge, real, forget) for each in samples]
        run.log(metrics[-1])
        run.json(judge.about, "judges")
        frame = table(metrics[0], metrics[-1]) if len(metrics) == 2 else pd.DataFrame({"value": metrics[0]})
        picture = run.picture(
            compare_samples(dict(zip(sources, samples, strict=True)), dataset.class_names, forget, evaluation),
            "comparison",
        )
        run.note(f"{' beside '.join(sources)}\n\n{picture}\n\n{as_markdown(frame)}")
        run.table(frame.reset_index(names="metric"), "metrics")
        print(f"\n{as_text(frame)}\n\n{run.url}  (after `make ui`)")


if __name__ == "__main__":
    main(evaluate)
