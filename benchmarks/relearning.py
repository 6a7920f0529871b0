"""Who withstands relearning: how soon a forgotten digit returns when an attacker fine-tunes on ten images of it.

python -m benchmarks.relearning                                               what the page in results/ shows; hours on one core
python -m benchmarks.relearning --classes=3 --bases=0 --only=safemax,dimum    a look, a few minutes

Each method corrects the same bases and is then attacked at every learning rate, by an attacker who fine-tunes the model as
it is and by one who first resets the forgotten label's embedding to the mean of the others. The measure is the area under
the share of recognised samples over the attacker's steps, in percent of the whole (100: back at once), at the rate that is
best for the attacker, model by model. A stopped run resumes: each model's row is kept.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from benchmarks import tables
from benchmarks.corrections import base_of
from pipelines.cli.parser import main, parse
from pipelines.correction.base_model import BaseTraining, NetworkOptions
from safemax import metric_keys as keys
from safemax.attacks.base import Setting, recognised
from safemax.attacks.relearn import attacker, draw, fine_tuned
from safemax.data.batches import to_float, to_uint8
from safemax.data.dataset import Dataset, Split
from safemax.data.sources import load
from safemax.diffusion.model import Diffusion
from safemax.errors import InputError
from safemax.evaluation.measure import code_digest, measure
from safemax.evaluation.protocol import Evaluation
from safemax.evaluation.samples import draw as draw_panel
from safemax.judges.config import JudgeConfig
from safemax.judges.load import Judges, judges
from safemax.judges.reference import Reference, reference
from safemax.knobs import check, knob
from safemax.methods import create, find
from safemax.reports.comparison_tables import interval
from safemax.storage import atomic, cache, source_digest
from safemax.training.hooks import Hooks
from safemax.training.settings import Training
from safemax.training.trainer import Trainer

NAME = "relearning-digits"
TITLE = "Who withstands relearning on digits"
LOOKS = (2, 4, 7, 10, 14, 20, 28, 40)  # the attacker's steps after which the model is sampled
BATCH = 32  # rows of an attacker's step
PLAIN, RESET = "as it is", "label reset"  # the attackers
BASE, GOLD = "base", "gold"
RIVALS = ("safemax", "dimum")


@dataclass(frozen=True)
class Variant:
    """A way to correct, and what of it differs from the defaults."""

    method: str
    knobs: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)


OURS, FAR = "ours", "ours (far targets)"
# About the same CPU time for all: the rows of a frozen model take a third of those that are trained on.
STEPS, DIMUM_STEPS, OURS_STEPS, FAR_STEPS = 300, 280, 256, 225
FAST = {"lr": 1e-3, "lr_end": 0.0, "ema": 0.97}
VARIANTS = {
    BASE: Variant("finetune"),
    GOLD: Variant("retrain"),
    "safemax": Variant("safemax", training={"steps": STEPS}),
    "dimum": Variant("dimum", training={"steps": DIMUM_STEPS}),
    OURS: Variant("expected_targets", training={"steps": OURS_STEPS}),
    FAR: Variant("far_targets", training={"steps": FAR_STEPS}),
    "with the target zero": Variant("far_targets", {"reach": 0.0}, {"steps": OURS_STEPS}),
    "without the frozen model on retain rows": Variant("far_targets", {"teacher_target": False}, {"steps": OURS_STEPS}),
    "at lambda = 1": Variant("far_targets", {"lmbda": 1.0}, {"steps": FAR_STEPS}),
    "safemax, 1e-3 falling to 0": Variant("safemax", training={"steps": STEPS, **FAST}),
}
COMPARED = (*RIVALS, FAR)  # on every pair of base and class, the others on the first pairs
SHOWN = (BASE, GOLD, *RIVALS, OURS, FAR)  # by a full line
REMARK = """\
![recognised share over the attacker's steps]({name}.png)

as it is, label reset: area under the share of samples recognised as the forgotten class over the attacker's {steps} steps, in \
percent of the whole, at the better of the rates {rates} for the attacker, model by model; {images} images of the class, \
Adam, {batch} rows a step, {samples} samples at each of the steps 0, {looks}. Differences are paired by base and class, with \
95 % intervals and the number of pairs. FID is of the retained classes, 100 samples each; UA_reject is of 200 samples; H is \
the plain judge's entropy on them; seconds are CPU seconds of the correction, on a machine with other work. \
All train 128 rows a step at a constant learning rate of 1e-4, \
where nothing else is said. All curves: [{name}-curves.csv]({name}-curves.csv)."""


@dataclass(frozen=True)
class BenchmarkOptions:
    """How much of the benchmark to run."""

    classes: str = knob("0,1,2,4,5,6,7,8,9", "labels of the classes to forget, one at a time; by commas")
    bases: str = knob("2,4", "seeds of the bases, and of the corrections of each; by commas")
    only: str = knob("all", "variants, by commas; all takes base, gold, the methods and what ours is without each part")
    ablated: int = knob(2, "pairs of base and class, the first ones, for base, gold and ablations", bounds=(1, 100))
    rates: str = knob("1e-3,3e-3", "the attacker's learning rates; by commas")
    images: int = knob(10, "images of the class that the attacker has", bounds=(1, 1000))
    samples: int = knob(40, "images drawn at each look", bounds=(10, 10_000))
    report_only: bool = knob(False, "measure nothing more; write the page of the rows that an earlier run has left")

    def __post_init__(self) -> None:
        check(self)
        unknown = {each for each in self.variants if each not in VARIANTS}
        if unknown:
            raise InputError(f"only = {self.only} is not allowed; variants are {', '.join(VARIANTS)}")

    @property
    def work(self) -> list[tuple[str, int, int]]:
        """Variant, base and class of each model: first what is compared on every pair, then the rest on the first pairs."""
        rest = [name for name in self.variants if name not in COMPARED]
        compared = [(name, *pair) for pair in self.pairs for name in self.variants if name in COMPARED]
        return [*compared, *((name, *pair) for pair in self.pairs[: self.ablated] for name in rest)]

    @property
    def variants(self) -> list[str]:
        """Names of the variants to run."""
        return list(VARIANTS) if self.only == "all" else [each.strip() for each in self.only.split(",")]

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Every base's seed with every class, the classes of the first base first."""
        return [(int(base), int(label)) for base in self.bases.split(",") for label in self.classes.split(",")]

    @property
    def learning_rates(self) -> list[float]:
        """The attacker's."""
        return [float(each) for each in self.rates.split(",")]


@dataclass
class Bench:
    """What the rows need, loaded once."""

    options: BenchmarkOptions

    @cached_property
    def dataset(self) -> Dataset:
        """The images."""
        return load("digits")

    @cached_property
    def judges(self) -> Judges:
        """The classifiers that judge."""
        return judges(self.dataset, JudgeConfig())

    @cached_property
    def reference(self) -> Reference:
        """Features of real images."""
        return reference(self.dataset, self.judges)

    def row(self, name: str, base: int, label: int) -> dict[str, Any] | None:
        """Return what was measured of a variant, from the cache where it was measured before; None where it may not be now."""
        attack = [self.options.learning_rates, self.options.images, self.options.samples, LOOKS]
        facts = {**asdict(VARIANTS[name]), "base": base, "class": label, "attack": attack}
        code = source_digest.digest(
            "safemax.training.trainer", "safemax.attacks.relearn", find(VARIANTS[name].method).__module__
        )
        path = cache.folder("rows") / f"relearning-{cache.key({**facts, 'code': [code, code_digest()]})}.json"
        if not path.exists() and self.options.report_only:
            return None
        if not path.exists():
            atomic.write_bytes(path, json.dumps(self._row(VARIANTS[name], base, label)).encode())
        return {"variant": name, **json.loads(path.read_text())}

    def _row(self, variant: Variant, base: int, label: int) -> dict[str, Any]:
        diffusion, seconds = self._model(variant, base, label)
        curves = {PLAIN: self._attacked(diffusion, base, label)}
        curves[RESET] = self._attacked(label_reset(diffusion, label), base, label)
        return {
            "base": base, "class": label, **self._panel(diffusion, base, label),
            "seconds": seconds, "curves": curves,
        }  # fmt: skip

    def _model(self, variant: Variant, base: int, label: int) -> tuple[Diffusion, float]:
        """Return a corrected model, or base or gold, and the CPU seconds of its correction."""
        diffusion, forget = base_of(self.dataset, base), (label,)
        if variant.method == "finetune":
            return diffusion, 0.0
        training = Training(seed=base, device="cpu", checkpoint_every=0, **variant.training)
        if variant.method == "retrain":
            training = BaseTraining(device="cpu", seed=base)
            diffusion = NetworkOptions().create(self.dataset, base)
        method, hooks = create(variant.method, **variant.knobs), Hooks(progress=False)
        started = time.process_time()
        Trainer(diffusion, method, self.dataset.train, forget, training, hooks=hooks).fit()
        return diffusion, time.process_time() - started

    def _panel(self, diffusion: Diffusion, seed: int, label: int) -> dict[str, float]:
        evaluation = Evaluation(forget_samples=200, second_samples=10, user_samples=0, evaluation_seed=seed)
        samples = draw_panel(diffusion, (label,), evaluation, shown=1, progress=False)
        metrics = measure(samples, self.judges, self.reference, (label,))
        names = {"FID": keys.FID_JUDGE, "accuracy": keys.ACCURACY, "UA_reject": keys.UA_REJECT, "H": keys.ENTROPY}
        return {name: metrics[key] for name, key in names.items()}

    def _attacked(self, diffusion: Diffusion, seed: int, label: int) -> dict[str, list[float]]:
        """Return the recognised share at the start and at each look, in percent, by the attacker's learning rate."""
        setting = Setting(
            self.dataset, (label,), self.judges.reject, self.judges.reject, neighbour=label,
            samples=self.options.samples, seed=seed,
        )  # fmt: skip
        images = setting.known(self.options.images)
        start = draw(diffusion, setting)
        return {f"{lr:g}": _curve(diffusion, setting, images, lr, start) for lr in self.options.learning_rates}


def _curve(diffusion: Diffusion, setting: Setting, images: Split, lr: float, start: Tensor) -> list[float]:
    training = replace(attacker(setting, max(LOOKS), lr, BATCH), device="cpu")
    trials = fine_tuned("", diffusion, setting, training, images, start=start, looks=LOOKS)
    return [_share(trial.images, setting) for trial in trials]


def _share(drawn: Tensor, setting: Setting) -> float:
    seen = recognised(to_float(to_uint8(drawn)), setting.judge, setting.forget)
    return 100 * seen.float().mean().item()


@torch.no_grad()
def label_reset(diffusion: Diffusion, label: int) -> Diffusion:
    """Return a copy whose label has the mean of the other classes' embeddings: no defence that lies in that row is left."""
    copied = copy.deepcopy(diffusion)
    others = [each for each in range(copied.num_classes) if each != label]
    for table in copied.label_tables():
        table.data[label] = table.data[others].mean(0)
    return copied


def area(shares: Sequence[float], looks: Sequence[int] = LOOKS) -> float:
    """Return the mean share over the attacker's steps, by trapezoids, in percent.

    Args:
        shares: at the start and after each of the looks.
        looks: the attacker's steps.
    """
    steps = [0, *looks]
    pieces = zip(pairwise(steps), pairwise(shares), strict=True)
    return sum((b - a) * (before + after) / 2 for (a, b), (before, after) in pieces) / steps[-1]


def best(curves: Mapping[str, Sequence[float]]) -> tuple[str, float]:
    """Return the attacker's best learning rate and its area."""
    areas = {lr: area(shares) for lr, shares in curves.items()}
    lr = max(areas, key=lambda each: areas[each])
    return lr, areas[lr]


def summary(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return one line a variant: its means, and differences to the rivals where both were measured, with intervals."""
    frame = pd.DataFrame(
        {
            **{k: v for k, v in row.items() if k != "curves"},
            **{who: best(row["curves"][who])[1] for who in (PLAIN, RESET)},
        }
        for row in rows
    ).set_index(["variant", "base", "class"])
    lines = []
    for name in frame.index.get_level_values("variant").unique():
        own = frame.loc[name]
        line = {"variant": name, "pairs": len(own), **own.mean().to_dict()}
        for rival in RIVALS:
            other = frame.loc[rival] if rival != name and rival in frame.index else own.iloc[:0]
            both = own.index.intersection(other.index)
            line |= _differences(own.loc[both], other.loc[both], rival) if len(both) else {}
        lines.append(line)
    return pd.DataFrame(lines).set_index("variant")


def _differences(own: pd.DataFrame, other: pd.DataFrame, rival: str) -> dict[str, str]:
    columns = {PLAIN: "area", RESET: "area, label reset", "FID": "FID"}
    line = {}
    for column, title in columns.items():
        differences = (own[column] - other[column]).tolist()
        low, high = interval(differences)
        of = f"{low:+.1f} to {high:+.1f}; {len(own)}" if len(own) > 1 else "1"
        line[f"{title} - {rival}'s"] = f"{sum(differences) / len(differences):+.1f} ({of})"
    return line


def curves(rows: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield every look: variant, base, class, attacker, learning rate, step, share."""
    for row in rows:
        head = {name: row[name] for name in ("variant", "base", "class")}
        for who, by_rate in row["curves"].items():
            for lr, shares in by_rate.items():
                looks = zip((0, *LOOKS), shares, strict=True)
                yield from ({**head, "attacker": who, "lr": lr, "step": step, "recognised": x} for step, x in looks)


def picture(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Return the mean curves at each model's best rate for the attacker, one panel an attacker; ablations are dashed."""
    figure = Figure(figsize=(11, 4.2), dpi=110, layout="compressed")
    for axis, who in zip(figure.subplots(1, 2, sharey=True), (PLAIN, RESET), strict=True):
        for name in dict.fromkeys(row["variant"] for row in rows):
            each = [row["curves"][who][best(row["curves"][who])[0]] for row in rows if row["variant"] == name]
            style = "-" if name in SHOWN else "--"
            axis.plot((0, *LOOKS), pd.DataFrame(each).mean(), style, label=name, linewidth=2 if name in SHOWN else 1)
        axis.set(title=f"attacker: {who}", xlabel="fine-tuning steps", ylabel="recognised, %", ylim=(-3, 103))
        axis.spines[["top", "right"]].set_visible(False)
    figure.get_axes()[-1].legend(frameon=False, fontsize=7, loc="lower right")
    return figure


def remark(options: BenchmarkOptions) -> str:
    """Return what the page says under its table."""
    return REMARK.format(
        name=NAME, steps=LOOKS[-1], rates=" and ".join(options.rates.split(",")), batch=BATCH, samples=options.samples,
        images=options.images,
        looks=", ".join(map(str, LOOKS)),
    )  # fmt: skip


def benchmark(argv: Sequence[str]) -> None:
    """Run and write page, tables and picture."""
    options = parse("python -m benchmarks.relearning", __doc__ or "", {"options": BenchmarkOptions}, argv)["options"]
    torch.set_num_threads(1)
    bench = Bench(options)
    found = [bench.row(*each) for each in tqdm(options.work, desc="models", smoothing=0)]
    rows = [row for row in found if row is not None]
    tables.FOLDER.mkdir(exist_ok=True)
    pd.DataFrame(curves(rows)).to_csv(tables.FOLDER / f"{NAME}-curves.csv", index=False)
    picture(rows).savefig(tables.FOLDER / f"{NAME}.png")
    tables.write(NAME, TITLE, summary(rows), remark(options), digits=2)


if __name__ == "__main__":
    main(benchmark)
