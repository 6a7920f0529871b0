"""SAFEMax on digits, all ten classes: what is recognised after unlearning, and what the retained classes paid.

python -m benchmarks.digits                          the paper's target and weights, and the variants below
python -m benchmarks.digits --classes=0,7 --only=paper
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch

from benchmarks import tables
from pipelines.command import main, parse
from pipelines.pretrain import PARAMETERS as PRETRAIN
from pipelines.pretrain import Network
from safemax import cache
from safemax.data import Dataset, load, parse_classes
from safemax.diffusion import Diffusion
from safemax.evaluation import Evaluation, kept_draw, measure
from safemax.judging import Judges, Judging, Reference, judges, reference
from safemax.knobs import check, knob
from safemax.methods import create
from safemax.methods.finetune import Finetune
from safemax.metrics.frechet import frechet_distance, statistics
from safemax.trainer import Training, fit

VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {},
    "zero": {"target": "zero"},
    "zero R=10": {"target": "zero", "retain_weight": 10.0},
    "chain R=10": {"target": "chain", "retain_weight": 10.0},
}
EVALUATION = Evaluation(forget_samples=500, retain_samples=100)


@dataclass(frozen=True)
class Extent:
    """How much of the benchmark to run."""

    classes: str = knob("0,1,2,3,4,5,6,7,8,9", "classes to forget, one at a time")
    only: str = knob("all", "one variant, or all", choices=("all", *VARIANTS))
    steps: int = knob(300, "steps of SAFEMax", bounds=(1, 100_000))

    def __post_init__(self) -> None:
        check(self)


def base_of(dataset: Dataset) -> Diffusion:
    """Return the demo's base model, trained once."""
    training = PRETRAIN["training"](device="cpu")
    diffusion = Network().create(dataset, training.seed)
    folder = cache.folder("bases") / cache.key({"start": diffusion.digest(), "training": str(training)})
    if not folder.exists():
        fit(diffusion, Finetune(), dataset.train, (), training)
        diffusion.save(folder)
    return Diffusion.load(folder)


def row(variant: str, k: int, steps: int, dataset: Dataset, judged: Judges, real: Reference) -> dict[str, object]:
    """Unlearn one class and measure base and corrected with the same seeds."""
    before = measure(kept_draw(base_of(dataset), (k,), EVALUATION), judged, real, (k,))
    diffusion = base_of(dataset)
    training = Training(steps=steps, device="cpu", checkpoint_every=0)
    result = fit(diffusion, create("safemax", **VARIANTS[variant]), dataset.train, (k,), training)
    after = measure(kept_draw(diffusion, (k,), EVALUATION), judged, real, (k,))
    return {
        "variant": variant,
        "class": dataset.class_names[k],
        "recognised %": after["forget/recognised"],
        "recognised, 2nd sampler %": 100 - after["forget/second_ua_reject"],
        "accuracy base": before["retain/accuracy"],
        "accuracy": after["retain/accuracy"],
        "FID base": before["retain/fid_judge"],
        "FID": after["retain/fid_judge"],
        "FID change %": 100 * (after["retain/fid_judge"] / before["retain/fid_judge"] - 1),
        "minutes": result.cost.runtime_minutes,
    }


def real_split_distance(real: Reference, per_class: int = 75) -> float:
    """Return the Frechet distance between two random halves of the real training images, each of `per_class` a class."""
    halves: list[list[torch.Tensor]] = [[], []]
    for k in real.labels.unique().tolist():
        features = real.of((k,))
        features = features[torch.randperm(len(features), generator=torch.Generator().manual_seed(0))]
        halves[0].append(features[:per_class])
        halves[1].append(features[per_class : 2 * per_class])
    first, second = (statistics(torch.cat(half)) for half in halves)
    return frechet_distance(*first, *second)


def benchmark(argv: Sequence[str]) -> None:
    """Run and write the table."""
    extent = parse("python -m benchmarks.digits", __doc__ or "", {"extent": Extent}, argv)["extent"]
    dataset = load("digits")
    judged = judges(dataset, Judging())
    real = reference(dataset, judged)
    variants = VARIANTS if extent.only == "all" else (extent.only,)
    classes = [c for name in extent.classes.split(",") for c in parse_classes(name, dataset.class_names)]
    rows = []
    for variant in variants:
        for k in classes:
            rows.append(row(variant, k, extent.steps, dataset, judged, real))
            print(rows[-1], file=sys.stderr, flush=True)
    frame = pd.DataFrame(rows).set_index("variant")
    mean = frame.drop(columns="class").groupby(level=0, sort=False).agg(["mean", "max"])
    print(mean.to_string())
    distance = real_split_distance(real)
    remark = (
        f"Base of 800 steps; {extent.steps} steps of 64 + 64 rows; 500 forget and 900 retained samples by "
        f"{EVALUATION.main_sampler}, same seeds before and after. Two random disjoint real splits of 750 images each lie "
        f"{distance:.2f} apart. Largest FID change: "
        + "; ".join(f"{v} {frame.loc[[v], 'FID change %'].max():.1f} %" for v in variants)
        + "."
    )
    tables.write("digits-safemax", "SAFEMax on digits, class by class", frame, remark, digits=2)


if __name__ == "__main__":
    main(benchmark)
