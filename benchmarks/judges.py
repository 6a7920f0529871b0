"""Judges of a data set side by side: what each costs, how good it is, and what it loses by a class "none of these".

python -m benchmarks.judges                               of CIFAR-10: ours, and heads on the networks in $SAFEMAX_DATA
python -m benchmarks.judges --forms=whitened              one of the forms; those measured before are read from the cache
python -m benchmarks.judges --data=mnist --forms=whitened what the product trains where it is told nothing else
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from benchmarks import tables
from pipelines.cli.parser import main, parse
from safemax.data.dataset import Dataset
from safemax.data.sources import load
from safemax.errors import unknown
from safemax.judges.classifier import REJECT
from safemax.judges.config import JudgeConfig
from safemax.judges.load import identity, judges
from safemax.knobs import check, knob
from safemax.storage import cache

SHOWN = 3  # classes that have a column, the hardest ones
TITLE = "Judges of {data}, plain and with none of these"
REMARK = """\
accuracy: right answers among 10,000 real test images, a rejection counts as wrong; by class for the three that are hardest for \
the first plain judge. \
most lost: points that a class loses to the plain judge, of the class that loses most. real rejected: of the same images. ECE: \
expected calibration error. Noise rejected: of 500 images each, clamped Gaussian, uniform, salt-and-pepper, and test images \
drowned in noise. CPU s and minutes: of the training, all threads; the machine was shared, its load average (1 minute) is given \
before and after. Forms: whitened, from random weights, with three heads on it; resnet20 and resnet56, third-party networks, with \
three heads on it; both, two heads on each of the two."""


def forms(data: str) -> dict[str, JudgeConfig]:
    """Return the judges of a data set that are compared, by name; the third-party networks know CIFAR-10 alone."""
    ours = {
        "whitened": JudgeConfig(judge="whitened", reject_judge="none_head"),
        "whitened_wide": JudgeConfig(judge="whitened_wide", reject_judge="none_head"),
        "trained_to_reject": JudgeConfig(judge="whitened", reject_judge="whitened", reject_judges=1),
    }
    return ours | _third_party() if data == "cifar10" else ours


def _third_party() -> dict[str, JudgeConfig]:
    given = {name: str(Path(os.environ["SAFEMAX_DATA"]) / "judges" / f"cifar10-{name}.safetensors")
             for name in ("resnet20", "resnet56")}  # fmt: skip
    both = f"none_head:{given['resnet20']},{given['resnet56']}"
    return {
        **{name: JudgeConfig(judge=path, reject_judge="none_head") for name, path in given.items()},
        "both": JudgeConfig(judge=given["resnet56"], reject_judge=both, reject_judges=4),
    }


@dataclass(frozen=True)
class Extent:
    """How much of the benchmark to run."""

    data: str = knob("cifar10", "cifar10, mnist or fashion_mnist", choices=("cifar10", "mnist", "fashion_mnist"))
    forms: str = knob(
        "whitened,resnet20",
        "whitened, whitened_wide, trained_to_reject; of cifar10 also resnet20, resnet56, both; by commas",
    )

    def __post_init__(self) -> None:
        check(self)
        for name in self.forms.split(","):
            if name not in forms(self.data):
                raise unknown("form", name, forms(self.data))


def rows(dataset: Dataset, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield a row of each form's plain judge and one of its judge with "none of these"."""
    measurements = {name: measured(dataset, name) for name in names}
    first = by_class(measurements[names[0]]["about"]["plain"])
    shown = sorted(sorted(first, key=first.__getitem__)[:SHOWN])
    for name, found in measurements.items():
        plain, reject = found["about"]["plain"], found["about"]["reject"]
        cost = {key: found[key] for key in ("CPU s", "minutes", "load")}
        yield {"form": name, "judge": plain["arch"], **numbers(plain, plain, shown)}
        yield {"form": name, "judge": reject["arch"], **numbers(reject, plain, shown), **cost}


def measured(dataset: Dataset, name: str) -> dict[str, Any]:
    """Return what the judges of a form are and what training them took; kept, since they are trained once."""
    config = forms(dataset.name)[name]
    facts = {"judges": identity(dataset, config), "threads": torch.get_num_threads()}
    path = cache.folder("rows") / f"judges-{cache.key(facts)}.json"
    if path.exists():
        return json.loads(path.read_text())
    before, started, cpu = os.getloadavg()[0], time.perf_counter(), time.process_time()
    judge_set = judges(dataset, config, device="cuda" if torch.cuda.is_available() else "cpu")
    found = {
        "about": judge_set.about,
        "CPU s": time.process_time() - cpu,
        "minutes": (time.perf_counter() - started) / 60,
        "load": f"{before:.0f}, {os.getloadavg()[0]:.0f}",
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found))
    return found


def numbers(about: Mapping[str, Any], plain: Mapping[str, Any], shown: Sequence[str]) -> dict[str, float]:
    """Return accuracy, of all classes and of those that are shown, and rejections of a judge, in percent."""
    right, before = by_class(about), by_class(plain)
    answers = about["answers"].values()
    rejected = sum(each.get(REJECT, 0) for each in answers) / sum(sum(each.values()) for each in answers)
    return {
        "accuracy": about["test_accuracy"],
        **{name: right[name] for name in shown},
        "most lost": max(before[name] - right[name] for name in right),
        "real rejected": 100 * rejected,
        **{law: shares.get(REJECT, 0.0) for law, shares in about["noise"].items()},
        "ECE": about["calibration_error"],
    }


def by_class(about: Mapping[str, Any]) -> dict[str, float]:
    """Return the right answers of each class, in percent."""
    return {name: 100 * each.get(name, 0) / sum(each.values()) for name, each in about["answers"].items()}


def benchmark(argv: Sequence[str]) -> None:
    """Run and write the table."""
    extent = parse("python -m benchmarks.judges", __doc__ or "", {"extent": Extent}, argv)["extent"]
    frame = pd.DataFrame(rows(load(extent.data), extent.forms.split(","))).set_index("form")
    left = [name for name in forms(extent.data) if name not in extent.forms.split(",")]
    remark = f"{REMARK} Not run: {', '.join(left)}." if left else REMARK
    tables.write(f"judges-{extent.data}", TITLE.format(data=extent.data), frame, remark, digits=2)


if __name__ == "__main__":
    main(benchmark)
